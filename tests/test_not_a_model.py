"""What functions that take a model say of a path, a state dict, a class and anything else."""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import reparam
import reparam.sr
from reparam import CheckpointError, RepSRBlock, SpecError
from reparam.errors import NotAModelError

IMAGES = np.zeros((1, 8, 8, 3), np.uint8)
AFTER = {
    "bn_gap": [torch.zeros(1, 3, 8, 8)],
    "export": ["net.onnx"],
    "macs": [torch.zeros(1, 3, 8, 8)],
    "quantize": ["net.onnx", IMAGES],
    "recalibrate_bn_stats": [[]],
    "save_checkpoint": ["net.safetensors"],
    "set_fold": [True],
    "swap_convs": [RepSRBlock],
    "tune_fold": [torch.zeros(1, 3, 8, 8)],
    "verify": [nn.Identity(), torch.zeros(1, 3, 8, 8)],
    "BNFreezeSchedule": [10],
}
"""The arguments after the model."""

LEFT_OUT = {"draw", "linear_op", "fused"}
"""They take blocks and layers and refuse models as well; the last is deprecated."""

FUNCTIONS = {
    name: function
    for package in (import_module(f"reparam.{one.name}") for one in pkgutil.iter_modules(reparam.__path__))
    for name in getattr(package, "__all__", ())
    if (callable(function := getattr(package, name)) and not inspect.isclass(function)) or name == "BNFreezeSchedule"
    for first in list(inspect.signature(function).parameters.values())[:1]
    if "nn.Module" in str(first.annotation) and name not in LEFT_OUT
}


def test_all_functions_are_here():
    assert AFTER.keys() < FUNCTIONS.keys() and {"fuse", "freeze_bn_stats", "kernel_of"} < FUNCTIONS.keys()


def call(name: str, model: object) -> None:
    result = FUNCTIONS[name](model, *AFTER.get(name, ()))
    if name == "norms":
        next(result)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_what_is_no_model_is_named_with_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAModelError, match=r"got the OrderedDict object; load a state dict .* or fuse it with fuse_"):
        call(name, nn.Conv2d(3, 4, 3).state_dict())
    with pytest.raises(NotAModelError, match=r"got the class Conv2d; create an object of it: Conv2d\("):
        call(name, nn.Conv2d)
    with pytest.raises(NotAModelError, match="got the int object; pass the network itself"):
        call(name, 3)
    if name != "quantize":  # which takes paths
        for path in ("net.pth", Path("net.pth")):
            with pytest.raises(NotAModelError, match=r"got the path 'net.pth'; reparam.sr.load_checkpoint\(path\)"):
                call(name, path)
    assert not list(tmp_path.iterdir()), "something was written"


def test_both_arguments_of_verify_are_models():
    with pytest.raises(NotAModelError, match="got the path 'fused.pth'"):
        reparam.verify(nn.Conv2d(3, 4, 3), "fused.pth", torch.zeros(1, 3, 8, 8))


def test_an_upscaler_says_what_it_takes():
    with pytest.raises(NotAModelError, match="OrderedDict object; load a state dict into its network"):
        reparam.sr.Upscaler(nn.Conv2d(3, 4, 3).state_dict())


def test_swapping_needs_something_that_makes_blocks():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(SpecError, match="block must be a class such as RepSRBlock, .* but got 'RepSRBlock'"):
        reparam.swap_convs(net, "RepSRBlock")
    assert type(net[0]) is nn.Conv2d


def test_fusing_a_state_dict_refuses_models_and_files():
    for given, kind in ((nn.Conv2d(3, 4, 3), "Conv2d"), ("net.pth", "str")):
        with pytest.raises(CheckpointError, match=f"expected a state dict, but got a {kind}: fuse takes models, "):
            reparam.fuse_state_dict(given)
