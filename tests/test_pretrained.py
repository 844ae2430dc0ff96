"""The weights that come with the package."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage import data
from spandrel import ModelLoader

import reparam
from reparam import SpecError, create_model, fuse, list_models, load_checkpoint, pretrained_file
from reparam.blocks._conv_block import ConvBlock
from reparam.models._pretrained import FOLDER

NAMES = list_models(pretrained=True)
PHOTO = torch.from_numpy(data.coffee()[150:190, 200:250] / np.float32(255)).permute(2, 0, 1)[None]


def photo(net) -> torch.Tensor:
    return PHOTO if net.colors == 3 else PHOTO.mean(1, keepdim=True)


def test_what_there_is():
    assert set(NAMES) == {f"repsr_{size}_x{n}{y}" for size in ("m4c16", "m6c32") for n in (2, 3, 4) for y in ("", "_y")}
    assert set(NAMES) <= set(list_models()), "a name that list_models does not show is not found"
    assert list_models("repsr_m4c16_x2", pretrained=True) == ["repsr_m4c16_x2"]
    assert list_models("plain*", pretrained=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_blocks_and_file_are_the_same_network(name):
    net = create_model(name, pretrained=True)
    shipped = load_checkpoint(pretrained_file(name))
    assert not net.training and all(isinstance(layer, ConvBlock) for layer in net.body[::2])
    with torch.no_grad():
        y = shipped(photo(net))
        assert (net(photo(net)) - y).abs().max() < 1e-5
        assert (fuse(net)(photo(net)) - y).abs().max() < 1e-5
        assert torch.equal(create_model(name, pretrained=True)(photo(net)), net(photo(net)))


@pytest.mark.parametrize("name", NAMES)
def test_fine_tuning_goes_on_from_them(name):
    net = create_model(name, pretrained=True).train()
    reparam.freeze_bn_stats(net)
    with torch.no_grad():
        target = load_checkpoint(pretrained_file(name))(photo(net))
    assert (net(photo(net)) - target).abs().max() < 1e-5
    (net(photo(net)) - target + 0.1).abs().mean().backward()
    assert all(bool((p.grad != 0).any()) for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_spandrel_loads_them_as_they_are(name):
    loaded = ModelLoader().load_from_file(pretrained_file(name))
    ours = load_checkpoint(pretrained_file(name))
    assert loaded.architecture.id == "Compact" and loaded.scale == ours.scale
    with torch.no_grad():
        assert (loaded.model(photo(ours)) - ours(photo(ours))).abs().max() < 1e-6


def test_files_are_small_and_all_are_in_the_model_card():
    card = (FOLDER / "README.md").read_text()
    files = sorted(FOLDER.glob("*.safetensors"))
    assert all(path.stat().st_size < 400_000 for path in files)
    assert {path.name.split(".")[0] for path in files} == set(NAMES) == set(re.findall(r"^\| `(\w+)` \|", card, re.M))
    assert all(
        tensor.dtype == torch.float32 or tensor.dim() == 0 for path in files for tensor in load_file(path).values()
    )


def test_what_has_no_weights():
    with pytest.raises(
        SpecError, match="there are no weights for 'ecbsr_m4c16_x2'; the package has them for .*repsr_m4c16_x2"
    ):
        create_model("ecbsr_m4c16_x2", pretrained=True)
    with pytest.raises(SpecError, match="no model is named 'resr_m4c16_x2'"):
        create_model("resr_m4c16_x2", pretrained=True)
    with pytest.raises(SpecError, match="'repsr_m4c16_x2' fit the network without expansion; leave out the option or"):
        create_model("repsr_m4c16_x2", pretrained=True, expansion=3)
    with pytest.raises(SpecError, match="no weights for 'nothing'"):
        pretrained_file("nothing")


def test_the_wheel_takes_them_along():
    assert Path(reparam.__file__).parent in FOLDER.parents
