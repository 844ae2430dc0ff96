"""The networks: names, shapes, parameter counts, and files that load in the programs people have."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, randomise
from spandrel import ModelLoader
from torch import nn

from reparam import ECBSR, EDSR, SESR, PlainSR, RepSR, RepSRBlock, RepVGGSR, SpecError, create_model, fuse, list_models


def ready(name: str) -> nn.Module:
    return randomise(create_model(name), 0).eval()


def compact(state: dict[str, torch.Tensor], x: torch.Tensor, scale: int) -> torch.Tensor:
    """SRVGGNetCompact as its paper draws it: convolutions and PReLUs, pixel shuffle, plus the nearest neighbors."""
    y = x
    for index in range(sum(key.endswith(("bias", "body.1.weight")) for key in state) * 2):
        weight, bias = state.get(f"body.{index}.weight"), state.get(f"body.{index}.bias")
        if weight is not None:
            y = F.conv2d(y, weight, bias, padding=1) if bias is not None else F.prelu(y, weight)
    return F.pixel_shuffle(y, scale) + F.interpolate(x, scale_factor=scale, mode="nearest")


FAMILIES = ["repsr", "ecbsr", "repvggsr", "qarepvggsr", "collapsiblesr"]
# One class has the forward of all of them, so that the plain one comes in every size, and the others in two.
EVERY_SIZE = [f"plain_m2c6_x{scale}{luma}" for scale in (1, 2, 3, 4) for luma in ("", "_y")]
TWO_SIZES = [f"{family}_m1c6_{size}" for family in FAMILIES for size in ("x2", "x3_y")]


@pytest.mark.parametrize("name", EVERY_SIZE + TWO_SIZES)
def test_every_scale_and_color(name):
    net = ready(name).double()
    plain = net if name.startswith("plain") else fuse(net)
    x = torch.rand(2, 1 if name.endswith("_y") else 3, 7, 9).double()
    expected = compact(plain.state_dict(), x, int(re.search(r"_x(\d)", name)[1]))
    assert_close(plain(x), expected)
    assert_close(net(x), expected)


@pytest.mark.parametrize(
    "name",
    ["repsr_m4c16_x2", "repsr_m4c16_x2_y", "repsr_m3c8_x3", "ecbsr_m4c8_x4", "repvggsr_m4c8_x2", "qarepvggsr_m4c8_x2"],
)
def test_fused_weights_load_in_spandrel(name):
    plain = fuse(ready(name))
    loaded = ModelLoader().load_from_state_dict(plain.state_dict())
    assert (loaded.architecture.id, loaded.scale) == ("Compact", plain.scale)
    x = torch.rand(1, plain.colors, 13, 17)
    assert_close(loaded.model(x), plain(x))


ACTS = {
    "prelu": lambda z: F.prelu(z, torch.tensor([0.25]).to(z)),
    "relu": F.relu,
    "leakyrelu": lambda z: torch.where(z < 0, z / 10, z),
    "softplus": lambda z: z.exp().log1p(),
    "linear": lambda z: z,
}


@pytest.mark.parametrize("act", ACTS)
def test_activations(act):
    net = create_model("ecbsr_m1c6_x2", act=act).double()
    x = torch.rand(1, 3, 6, 5).double()
    y = x
    for index in (0, 2, 4):  # where the compact network has its convolutions, whatever lies between
        y = net.body[index](ACTS[act](y) if index else y)
    assert_close(net(x), F.pixel_shuffle(y, 2) + F.interpolate(x, scale_factor=2))
    assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


# Of fused networks, by (size, scale): the convolutions for luma; with the slopes of the PReLUs, all of it for luma; all
# of it for RGB.
COUNTS = {
    ("m4c8", 2): (2708, 2748, 3476),
    ("m4c8", 4): (3584, 3624, 6104),
    ("m4c16", 2): (10020, 10100, 11548),
    ("m4c16", 4): (11760, 11840, 16768),
    ("m6c32", 2): (56964, 57188, 60076),
    ("m6c32", 4): (60432, 60656, 70480),
    ("m10c16", 2): (23940, 24116, 25564),
    ("m10c16", 4): (25680, 25856, 30784),
    ("m10c32", 2): (93956, 94308, 97196),
    ("m10c32", 4): (97424, 97776, 107600),
    ("m16c64", 2): (593796, 594884, 600652),
    ("m16c64", 4): (600720, 601808, 621424),
}


def count(net: nn.Module, *kinds: type[nn.Module]) -> int:
    """Parameters of a network, or of its modules of some kinds."""
    modules = [module for module in net.modules() if not kinds or isinstance(module, kinds)]
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False))


@pytest.mark.parametrize(
    ("family", "size", "scale"),
    [("plain", *key) for key in COUNTS] + [(family, "m4c8", scale) for family, scale in zip(FAMILIES, (2, 4, 2, 4, 2))],
)
def test_parameter_counts_of_the_field(family, size, scale):
    luma, rgb = (ready(f"{family}_{size}_x{scale}{end}") for end in ("_y", ""))
    luma, rgb = (luma, rgb) if family == "plain" else (fuse(luma), fuse(rgb))
    assert (count(luma, nn.Conv2d), count(luma), count(rgb)) == COUNTS[size, scale]
    assert list(rgb.state_dict())[:3] == ["body.0.weight", "body.0.bias", "body.1.weight"]


def test_parameter_counts_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "api" / "sr.md").read_text()
    rows = re.findall(r"^\| (m\d+c\d+) \| (.*) \|$", page, re.MULTILINE)
    shown = {size: [int(cell.replace(",", "")) for cell in cells.split(" | ")] for size, cells in rows}
    assert shown == {size: [COUNTS[size, scale][column] for column in (1, 2) for scale in (2, 4)] for size, _ in COUNTS}


def test_ecbsr_has_identities_only_if_asked_for():
    off = [len(layer.branches) for layer in create_model("ecbsr_m2c16_x2").body if hasattr(layer, "branches")]
    on = create_model("ecbsr_m2c16_x4_y", identity=None, expansion=3)
    assert off == [5, 5, 5, 5]
    assert [len(layer.branches) for layer in on.body if hasattr(layer, "branches")] == [5, 6, 6, 6]
    assert on.body[2].branches[1].expand.out_channels == 48


def test_repsr_has_identities_where_channels_match():
    counts = [len(layer.branches) for layer in create_model("repsr_m2c16_x2").body if hasattr(layer, "branches")]
    assert counts == [2, 3, 3, 2]


def test_options_reach_the_block():
    net = create_model("repsr_m1c4_x2", expansion=3, bn=False)
    assert net.body[0].branches[0].expand.weight.shape[0] == 12
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert isinstance(net, RepSR) and isinstance(create_model("plain_m1c4_x2"), PlainSR)


def test_listed_names_can_be_built():
    names = list_models()
    assert len(names) == len(set(names)) == 6 * 6 * 4 * 2 + 5 * 2 + 2 * 3 * 2
    with torch.device("meta"):
        for name in names:
            sizes_too = name.endswith("_x2") and name.startswith(("plain", "repsr", "sesr", "edsr"))
            if not sizes_too and "m4c8" not in name:
                continue  # every family at one size, and every size of some at one scale of RGB, will do
            net = create_model(name)
            luma = name.startswith("sesr") or name.endswith("_y")
            assert (net.scale, net.colors) == (int(re.search(r"_x(\d)", name)[1]), 1 if luma else 3)
    assert list_models("plain_m4c8_x?") == [f"plain_m4c8_x{scale}" for scale in (1, 2, 3, 4)]
    assert list_models("sesr_*_x4") == [f"sesr_{size}_x4" for size in ("m3", "m5", "m7", "m11", "xl")]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("repsr", "no model is named 'repsr'; a name is repsr_SIZE_x<scale>, with _y for luma; sizes: m<blocks>c<chan"),
        ("repsr_m4c16_x5", "'repsr_m4c16_x5'.*scales: 1, 2, 3, 4"),
        ("repsr_m4c16_x2_y_y", "'repsr_m4c16_x2_y_y'"),
        (
            "resnet_m4c16_x2",
            "'resnet_m4c16_x2'; a name is FAMILY_.*families: plain, repsr, ecbsr, repvggsr, .*, sesr, edsr",
        ),
        ("plain_m4c0_x2", "channels must be an integer of at least 1, but got channels=0"),
        ("plain_xl_x2", "'plain_xl_x2'.*usually m4c8, m4c16"),
        ("sesr_m4_x2", "'sesr_m4_x2'.*usually m3, m5, m7, m11, xl; scales: 2, 4"),
        ("sesr_m5_x3", "'sesr_m5_x3'; a name is sesr_SIZE_x<scale>; sizes"),
        ("sesr_m5_x2_y", "'sesr_m5_x2_y'; a name is sesr_SIZE_x<scale>; sizes"),
        ("edsr_m16c64_x1", "'edsr_m16c64_x1'.*usually m16c64, m32c256; scales: 2, 3, 4"),
    ],
)
def test_wrong_names(name, match):
    with pytest.raises(SpecError, match=match):
        create_model(name)


def test_wrong_options():
    with pytest.raises(SpecError, match="'repsr_m4c16_x2' already sets colors, scale; .* build RepSR"):
        create_model("repsr_m4c16_x2", scale=3, colors=1)
    with pytest.raises(SpecError, match="'sesr_xl_x2' already sets channels, hidden_channels; .* build SESR"):
        create_model("sesr_xl_x2", channels=16, hidden_channels=8)
    with pytest.raises(SpecError, match="scale must be one of 1, 2, 3, 4, but got scale=2.0"):
        PlainSR(scale=2.0)
    with pytest.raises(SpecError, match="scale must be one of 2, 4, but got scale=3"):
        SESR(scale=3)
    with pytest.raises(SpecError, match="scale must be one of 2, 3, 4, but got scale=1"):
        EDSR(scale=1)
    with pytest.raises(SpecError, match="num_blocks must be an integer of at least 0, but got num_blocks=-1"):
        RepVGGSR(num_blocks=-1)
    with pytest.raises(SpecError, match="hidden_channels must be an integer of at least 1, but got hidden_channels=0"):
        SESR(hidden_channels=0)
    with pytest.raises(SpecError, match="'prelu', 'relu', 'leakyrelu', 'softplus', 'linear', but got act='rrelu'"):
        ECBSR(act="rrelu")
    with pytest.raises(SpecError, match=r"each of the 1 colors, but got mean=\(0.4, 0.5\)"):
        EDSR(colors=1, mean=[0.4, 0.5])


TRAINED = {
    name: {} for name in ("repsr_m1c6_x3", "ecbsr_m1c6_x4", "repvggsr_m1c6_x1", "collapsiblesr_m1c6_x2", "sesr_m3_x4")
}
TRAINED["edsr_m1c6_x2"] = {"block": RepSRBlock}


@pytest.mark.parametrize(("name", "options"), TRAINED.items())
def test_every_network_trains_and_takes_every_dtype_and_device(name, options):
    net = create_model(name, **options)
    x = torch.rand(2, net.colors, 8, 7)
    y = net(x)
    assert y.shape == (2, net.colors, 8 * net.scale, 7 * net.scale)
    y.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert_close(fuse(net.eval())(x), net(x))
    assert_close(copy.deepcopy(net).bfloat16()(x.bfloat16()), net(x).bfloat16())
    with torch.device("meta"):
        assert create_model(name, **options)(torch.rand(x.shape)).shape == y.shape
