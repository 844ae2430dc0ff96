"""A device without float64, as Apple's GPUs: everything runs there, and asks for float64 on the CPU only."""

import copy

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import reparam
from reparam import (
    DilatedReparamBlock,
    OREPABlock,
    RepMBConvBlock,
    RepSRBlock,
    bn_gap,
    freeze_bn_stats,
    fuse,
    recalibrate_bn_stats,
    swap_convs,
    verify,
)
from reparam.blocks._conv_block import ConvBlock
from reparam.numerics import _precision as precision
from reparam.numerics._precision import float64_device, in_float64

BLOCKS = [
    kind
    for name in reparam.__all__
    if isinstance(kind := getattr(reparam, name), type) and issubclass(kind, ConvBlock) and kind is not ConvBlock
]


class There(torch.Tensor):
    """Numbers that say to be on such a device; torch knows the name of "meta" in every build, and needs no driver."""

    is_meta = False

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Device.run(function, args, kwargs or {})


class Device(TorchDispatchMode):
    """Runs operations of that device on the CPU, and refuses what is float64 there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    @staticmethod
    def run(function, args, kwargs):
        found = []
        tree_map(lambda leaf: found.append(leaf) if isinstance(leaf, There) else None, (args, kwargs))
        asked = kwargs.get("device")
        there = bool(found) if asked is None else torch.device(asked).type == "meta"
        if asked is not None:
            kwargs = {**kwargs, "device": "cpu"}
        held_args, held_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (args, kwargs))
        result = function(*held_args, **held_kwargs)
        if function._schema.name.endswith("_") or "out" in kwargs:  # in place: the first one; of lists, nothing
            return None if result is None else args[0]
        return tree_map(lambda leaf: wrapped(leaf) if there and isinstance(leaf, torch.Tensor) else leaf, result)


def wrapped(tensor):
    if tensor.dtype == torch.float64:
        raise TypeError("this device doesn't support float64")
    return There(tensor)


def made(block: type[ConvBlock]) -> ConvBlock:
    return block(4, kernel_size=5 if block is DilatedReparamBlock else 3)


def taken_there(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(There(tensor.detach()), tensor.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = There(tensor)
    return module


def back(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, There), "it left its device"
    return tensor.detach().held


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", {"meta"})
    with Device():
        yield


def test_the_device_refuses_float64(device):
    x = There(torch.ones(3))
    with pytest.raises(TypeError, match="doesn't support float64"):
        x.double()
    with pytest.raises(TypeError, match="doesn't support float64"):
        torch.zeros(3, dtype=torch.float64, device="meta")
    assert float64_device(x.device) == torch.device("cpu") and in_float64(x).dtype == torch.float64


RUN = [block for block in BLOCKS if block is not RepMBConvBlock]  # torch reshapes in place there, past the stand-in


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.__name__)
def test_a_step_of_training_there_is_that_on_the_cpu(block, device):
    torch.manual_seed(0)
    here = made(block)
    if here.why_not_fold(True) is None:
        here.fold = True
    there, x = taken_there(copy.deepcopy(here)), torch.rand(4, 4, 8, 8)
    y, expected = there(There(x)), here(x)
    y.square().mean().backward()
    expected.square().mean().backward()
    assert_close(back(y), expected.detach(), 1e-5)
    for ours, theirs in zip(there.parameters(), here.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(back(ours.grad), theirs.grad, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(there.buffers(), here.buffers()):
        torch.testing.assert_close(back(ours), theirs, rtol=1e-5, atol=1e-6)


def tensors_are_there(model: nn.Module) -> bool:
    return all(isinstance(tensor, There) for tensor in (*model.parameters(), *model.buffers()))


def test_all_that_is_done_with_statistics(device):
    """Recalibrated, measured, frozen, fused and verified, there and on the CPU."""
    torch.manual_seed(0)
    here = nn.Sequential(RepSRBlock(3, 4, fold=True), nn.PReLU(4), OREPABlock(4, 4))
    there, x = taken_there(copy.deepcopy(here)), torch.rand(4, 3, 9, 9)
    found = []
    for model, images in ((here, x), (there, There(x))):
        recalibrate_bn_stats(model, [images])
        gap = bn_gap(model, images).shift
        freeze_bn_stats(model)
        plain = fuse(model.eval())
        assert verify(model, plain, images).ok
        found.append((gap, plain(images)))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
    assert_close(back(found[1][1]), found[0][1].detach(), 1e-5)
    assert tensors_are_there(there)


def test_swapping_and_calibrating(device):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PReLU(4))
    there, x = taken_there(copy.deepcopy(here)), torch.rand(4, 3, 9, 9)
    swap_convs(there, RepSRBlock, calibrate=[There(x)])
    assert tensors_are_there(there)
    assert_close(back(there.eval()(There(x))), here(x).detach(), 1e-4)


class NoFloat64OnMeta(TorchDispatchMode):
    """Refuses float64 on torch's own device without numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta and result.dtype == torch.float64:
            raise TypeError("this device doesn't support float64")
        return result


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_every_block_is_made_on_a_device_without_float64(block):
    with NoFloat64OnMeta(), torch.device("meta"):
        assert all(tensor.is_meta for tensor in (*made(block).parameters(), *made(block).buffers()))
