"""The networks: names, shapes, parameter counts, and files that load in the programs people have."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise
from spandrel import ModelLoader
from torch import nn

from reparam import PlainSR, RepSR, SpecError, create_model, fuse, list_models


def ready(name: str) -> nn.Module:
    return randomise(create_model(name), 0).eval()


def compact(state: dict[str, torch.Tensor], x: torch.Tensor, scale: int) -> torch.Tensor:
    """SRVGGNetCompact as its paper draws it: convolutions and PReLUs, pixel shuffle, plus the nearest neighbours."""
    y = x
    for index in range(sum(key.endswith(("bias", "body.1.weight")) for key in state) * 2):
        weight, bias = state.get(f"body.{index}.weight"), state.get(f"body.{index}.bias")
        if weight is not None:
            y = F.conv2d(y, weight, bias, padding=1) if bias is not None else F.prelu(y, weight)
    return F.pixel_shuffle(y, scale) + F.interpolate(x, scale_factor=scale, mode="nearest")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("luma", ["", "_y"])
@pytest.mark.parametrize("family", ["plain", "repsr"])
def test_every_scale_and_colour(family, scale, luma):
    net = ready(f"{family}_m2c6_x{scale}{luma}").double()
    plain = fuse(net) if family == "repsr" else net
    x = torch.rand(2, 1 if luma else 3, 7, 9).double()
    expected = compact(plain.state_dict(), x, scale)
    assert_close(plain(x), expected)
    assert_close(net(x), expected)


@pytest.mark.parametrize("name", ["repsr_m4c16_x2", "repsr_m4c16_x2_y", "repsr_m3c8_x3", "repsr_m4c8_x4"])
def test_fused_weights_load_in_spandrel(name):
    plain = fuse(ready(name))
    loaded = ModelLoader().load_from_state_dict(plain.state_dict())
    assert (loaded.architecture.id, loaded.scale) == ("Compact", plain.scale)
    x = torch.rand(1, plain.colors, 13, 17)
    assert_close(loaded.model(x), plain(x))


def test_parameter_counts_of_the_field():
    """Fused, with PReLU: the counts that ECBSR and ETDS publish for these sizes."""
    for name, count in [
        ("m4c8_x2_y", 2748),
        ("m4c16_x2_y", 10100),
        ("m10c32_x4_y", 97776),
        ("m16c64_x2_y", 594884),
        ("m4c16_x2", 11548),
        ("m4c16_x4", 16768),
    ]:
        assert sum(p.numel() for p in create_model(f"plain_{name}").parameters()) == count
        assert list(create_model(f"plain_{name}").state_dict())[:3] == ["body.0.weight", "body.0.bias", "body.1.weight"]


def test_repsr_has_identities_where_channels_match():
    counts = [len(layer.branches) for layer in create_model("repsr_m2c16_x2").body if hasattr(layer, "branches")]
    assert counts == [2, 3, 3, 2]


def test_options_reach_the_block():
    net = create_model("repsr_m1c4_x2", expansion=3, bn=False)
    assert net.body[0].branches[0].expand.weight.shape[0] == 12
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert isinstance(net, RepSR) and isinstance(create_model("plain_m1c4_x2"), PlainSR)


def test_every_listed_name_can_be_built():
    names = list_models()
    assert len(names) == len(set(names)) == 80
    with torch.device("meta"):
        for name in names:
            assert create_model(name).scale == int(name.split("_x")[1][0])
    assert list_models("plain_m4c8_x?") == [f"plain_m4c8_x{scale}" for scale in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("repsr", "no model is named 'repsr'; a name is FAMILY_m"),
        ("repsr_m4c16_x5", "'repsr_m4c16_x5'.*scales: 1 to 4"),
        ("resnet_m4c16_x2", "families: plain, repsr"),
        ("plain_m4c0_x2", "channels must be an integer from 1"),
    ],
)
def test_wrong_names(name, match):
    with pytest.raises(SpecError, match=match):
        create_model(name)


def test_wrong_options():
    with pytest.raises(SpecError, match="'repsr_m4c16_x2' already decides colors, scale"):
        create_model("repsr_m4c16_x2", scale=3, colors=1)
    with pytest.raises(SpecError, match="scale must be an integer from 1 to 4, but got scale=2.0"):
        PlainSR(scale=2.0)
