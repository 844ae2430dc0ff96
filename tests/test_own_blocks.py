"""State dicts of this library's blocks are fused without a model, into what `fuse` makes of the model."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from helpers import PAPERS, randomise
from strategies import KINDS
from torch import Tensor, nn

from reparam import (
    AvgPoolBranch,
    CheckpointError,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    ExpandSqueezeBranch,
    IdentityBranch,
    LaplacianBranch,
    LoRABranch,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    ScaledBranch,
    SequentialBranch,
    SliceBranch,
    SobelBranch,
    blocks,
    fuse,
    fuse_file,
    fuse_state_dict,
    inspect_file,
)
from reparam.blocks._conv_block import ConvBlock
from reparam.files._found_blocks import find_blocks_in
from reparam.files._layouts import Options

StateDict = dict[str, Tensor]
BUILD = vars(blocks)

# Each class with options that change its keys, and what is to be told of it.
CASES = [
    ("ACBlock", (5, 7, (1, 3)), {}, {}),
    ("ACBlock", (6, 6), {"groups": 3}, {"identity": False, "groups": 3}),
    ("CollapsibleLinearBlock", (3, 8, 5), {"hidden_channels": 12}, {}),
    ("CollapsibleLinearBlock", (6,), {"hidden_channels": 12}, {"identity": True}),
    ("CollapsibleLinearBlock", (6,), {"hidden_channels": 12, "stride": 2}, {"identity": False}),
    ("Conv3XC", (6, 8), {"gain": 3}, {}),
    ("DilatedReparamBlock", (4, 4, 7), {"groups": 4}, {"dilations": (1, 2, 3), "identity": False}),
    (
        "DilatedReparamBlock",
        (4, 4, 9),
        {"groups": 4, "small": ([3, 5], [4, 1])},
        {"dilations": (4, 1), "identity": False},
    ),
    ("DiverseBranchBlock", (6, 8), {}, {}),
    ("DiverseBranchBlock", (6, 8), {"hidden_channels": 9}, {}),
    ("DiverseBranchBlock", (6, 6), {"groups": 6}, {}),
    ("DiverseBranchBlock", (6, 8), {"bn": False}, {}),
    ("ECB", (6,), {}, {"identity": False}),
    ("ECB", (6,), {"identity": None}, {"identity": True}),
    ("ECB", (6, 6, 5), {"groups": 2, "identity": True}, {"identity": True}),
    ("ECB", (6, 8), {"expansion": 1.5}, {}),
    ("EDBB", (6,), {"expansion": 2.0}, {"identity": True}),
    ("EDBB", (6, 8), {}, {}),
    ("LoRABlock", (6, 8), {"rank": 3, "alpha": 1.5}, {}),
    ("LoRABlock", (6,), {"groups": 3}, {"identity": False, "groups": 3}),
    ("MBRConvBlock", (4, 6, 5), {"expansion": 2}, {}),
    ("MBRConvBlock", (4, 4), {"expansion": 3, "shared": False, "groups": 2}, {}),
    ("MBRConvBlock", (4, 6, 1), {"bn": False}, {}),
    ("MobileOneBlock", (6,), {"groups": 6, "conv_branches": 4}, {}),
    ("MobileOneBlock", (6, 6, 1), {"conv_branches": 2}, {}),
    ("MobileOneBlock", (6, 8), {"stride": 2}, {}),
    ("OmniShift", (6,), {"groups": 6}, {"dilations": [1], "identity": False, "groups": 6}),
    (
        "OmniShift",
        (6,),
        {"groups": 6, "shared": True, "conv_bias": False},
        {"dilations": [1], "identity": False, "groups": 6},
    ),
    ("OREPABlock", (6, 8), {"expansion": 3}, {}),
    ("OREPABlock", (6, 6), {"groups": 2, "hidden_channels": 10}, {}),
    ("OREPABlock", (6, 8, 1), {}, {}),
    ("OREPARepVGGBlock", (6,), {}, {}),
    ("OREPARepVGGBlock", (6,), {"hidden_channels": 9, "stride": 2}, {}),
    ("QARepVGGBlock", (6,), {}, {"identity": True, "pool": False}),
    ("QARepVGGBlock", (6,), {"pool": True}, {"identity": True, "pool": True}),
    ("QARepVGGBlock", (6,), {"groups": 3}, {"identity": True, "pool": False, "groups": 3}),
    ("QARepVGGBlock", (6,), {"groups": 3, "stride": 2}, {"identity": False, "pool": False}),
    ("QARepVGGBlock", (6, 8), {"alpha": True, "point_bias": True, "sum_bn": False}, {}),
    ("RRRB", (6,), {}, {"identity": True}),
    ("RRRB", (6,), {"stride": 2, "expansion": 3}, {"identity": False}),
    ("RRRB", (6, 8), {"groups": 2}, {"identity": True}),
    ("RTMoSRRepConv", (6, 8), {}, {}),
    ("RTMoSRRepConv", (6,), {"expansion": 1.5, "gain": 3}, {"identity": False}),
    ("RepDWConvS", (6,), {"groups": 6}, {"dilations": [2], "identity": False}),
    ("RepDWConvS", (6,), {"groups": 6, "stride": 2, "conv_bias": False}, {"dilations": [2], "identity": False}),
    ("RepDWConvM", (6,), {"groups": 6}, {"dilations": [1, 1], "identity": False}),
    ("RepMBConvBlock", (6,), {"gate_reduction": 3}, {"identity": True}),
    ("RepRFNBlock", (6,), {}, {"identity": True}),
    ("RepRFNBlock", (6,), {"identity": False, "expansion": 1}, {"identity": False}),
    ("RepRLFNBlock", (6,), {}, {"identity": True}),
    ("RepRLFNBlock", (6, 8, 5), {}, {}),
    ("RepSRBlock", (6,), {}, {}),
    ("RepSRBlock", (6,), {"identity": False, "paths": 3}, {"identity": False}),
    ("RepSRBlock", (3, 16), {"bias": False}, {"bias": False}),
    ("RepSRBlock", (6,), {"groups": 2, "stride": 2}, {"identity": False}),
    ("RepVGGDW", (6,), {"groups": 6}, {"identity": True, "pool": False, "groups": 6}),
    ("RepVGGDW", (6, 6, 7), {"groups": 6, "small_size": 3}, {"dilations": [1], "identity": True, "groups": 6}),
    (
        "RepVGGDW",
        (6, 6, 7),
        {"groups": 6, "small_size": 3, "small_bn": True, "identity": False, "sum_bn": False},
        {"dilations": [1], "identity": False, "groups": 6},
    ),
    ("RepVGGBlock", (6,), {}, {}),
    ("RepVGGBlock", (6,), {"dilation": 2, "groups": 6, "padding_mode": "reflect"}, {}),
    ("RepVGGBlock", (6, 9), {"ndim": 1, "groups": 3}, {}),
    ("RepVGGBlock", (4, 4), {"ndim": 3, "sum_bn": True}, {}),
]


DILATIONS = {
    "DilatedReparamBlock": [2],
    "OmniShift": [1],
    "RepDWConvS": [4],
    "RepDWConvM": [1, 1],
}
"""Of the small kernels in one of 5x5."""


def net_of(block: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network of others' making, with a block in it."""
    channels = block.spec.out_channels
    return randomise(nn.Sequential(nn.Identity(), nn.Sequential(block, nn.PReLU(channels))), 0).to(dtype).eval()


def check_as_fuse(net: nn.Module, **told) -> None:
    """The keys, and every number, are those of `fuse`."""
    fused, expected = fuse_state_dict(net.state_dict(), **told), fuse(net).state_dict()
    assert list(fused) == list(expected)
    for key, value in expected.items():
        assert fused[key].dtype == value.dtype
        torch.testing.assert_close(fused[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "sizes", "options", "told"), CASES)
def test_every_block_becomes_what_fuse_makes_of_it(name, sizes, options, told):
    net = net_of(BUILD[name](*sizes, **options))
    (found,) = find_blocks_in(net.state_dict(), Options(**told))
    assert (found.name, found.fused) == ("1.0", "1.0")
    check_as_fuse(net, **told)


def test_no_block_is_missing_above():
    assert {name for name, *_ in CASES} == set(PAPERS) - {"ChunkConv"}  # which is refused below


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["RepSRBlock", "RepVGGBlock", "MBRConvBlock"])
def test_each_number_is_rounded_once(name, dtype):
    net = net_of(BUILD[name](6, 8), dtype)
    fused, exact = fuse_state_dict(net.state_dict()), fuse_state_dict(net.double().state_dict())
    assert all(value.dtype == dtype and torch.equal(value, exact[key].to(dtype)) for key, value in fused.items())


def test_an_unusual_eps_by_the_name_of_the_block():
    net = net_of(RepVGGBlock(6))
    for part in net[1][0].branches:
        part.norm.eps = 0.1
    check_as_fuse(net, eps={"1.*": 0.1, "*": 1e-5})


OWN_BRANCHES = {
    "RepVGG and a clean identity": (
        [ConvBNBranch, partial(ConvBNBranch, kernel_size=1), IdentityBranch],
        {"identity": True},
    ),
    "conv": ([ConvBNBranch, partial(ConvBranch, kernel_size=1)], {"identity": False, "pool": False}),
    "identity last": ([ConvBNBranch, ConvBNBranch, ConvBNBranch, IdentityBranch], {"identity": True, "pool": False}),
    "identity first": ([IdentityBranch, ConvBNBranch], {"identity": True, "pool": False}),
    "pool": ([partial(AvgPoolBranch, conv=False), ConvBNBranch, ConvBranch], {"identity": False, "pool": True}),
    "edges": (
        [SobelBranch, LaplacianBranch, partial(ExpandSqueezeBranch, bn=True)],
        {"identity": False, "pool": False},
    ),
    "low rank": ([ConvBranch, partial(LoRABranch, rank=2, alpha=3.0)], {"identity": False, "pool": False}),
    "scaled": (
        [partial(ScaledBranch, branch=ConvBNBranch), partial(ScaledBranch, branch=IdentityBranch, shared=True)],
        {"identity": True, "pool": False},
    ),
    "scaled block": (
        [
            partial(ScaledBranch, branch=partial(ReparamBlock, branches=[ConvBranch, LoRABranch]), shared=True),
            ConvBNBranch,
        ],
        {"identity": False, "pool": False},
    ),
    "chain": (
        [
            ConvBNBranch,
            lambda spec: SequentialBranch(
                spec, nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12, affine=False), nn.Conv2d(12, 6, 3, groups=6)
            ),
        ],
        {"identity": False, "pool": False},
    ),
}


@pytest.mark.parametrize("name", OWN_BRANCHES)
def test_blocks_of_ones_own(name):
    branches, told = OWN_BRANCHES[name]
    net = net_of(ReparamBlock(ConvSpec(6), branches))
    check_as_fuse(net, **told)
    with pytest.raises(CheckpointError, match=r"block '1.0'.*the keys do not say.*pass (identity|pool)=True or False"):
        fuse_state_dict(net.state_dict())


@pytest.mark.parametrize(
    ("block", "asked"),
    [
        (partial(BUILD["ECB"], 6), "identity"),
        (partial(BUILD["RRRB"], 6), "identity"),
        (partial(BUILD["QARepVGGBlock"], 6), "pool"),
        (partial(BUILD["DilatedReparamBlock"], 4, 4, 7, groups=4), "dilations"),
    ],
)
def test_what_no_key_tells_is_asked_for(block, asked):
    with pytest.raises(CheckpointError, match=f"block '1.0'.*the keys do not say.*pass {asked}"):
        fuse_state_dict(net_of(block()).state_dict())


def test_the_wrong_number_of_dilations():
    net = net_of(BUILD["DilatedReparamBlock"](4, 4, 7, groups=4))
    with pytest.raises(
        CheckpointError, match=r"dilations needs one number for each of 3 small kernels, but got \(1, 2\)"
    ):
        fuse_state_dict(net.state_dict(), dilations=(1, 2))


def state_dict_of(block: nn.Module, prefix: str = "a.") -> StateDict:
    return {prefix + key: value for key, value in randomise(block, 0).state_dict().items()}


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"a.extra.weight": (6,)}, "block 'a' has the keys of RepVGGBlock and others: 'a.extra.weight'"),
        ({"a.branches.1.extra.weight": (6,)}, r"branch 1 is not a branch of this library; it has .*, \.\.\."),
        ({"a.branches.7.conv.weight": (6, 4, 3, 3)}, "block 'a'.*cannot be used"),
        ({"a.branches.1.conv.weight": (6, 4, 1, 1)}, r"has shape \(6, 4, 1, 1\), but \(6, 6, 1, 1\) was expected"),
        ({"a.branches.1.norm.weight": None}, r"'branches.1.norm.weight' of shape \(6,\) is missing"),
    ],
)
def test_spoilt_blocks_are_refused(more, match):
    sd = state_dict_of(RepVGGBlock(6))
    sd |= {key: torch.rand(shape) for key, shape in more.items() if shape}
    sd = {key: value for key, value in sd.items() if more.get(key, ()) is not None}
    with pytest.raises(CheckpointError, match=match):
        fuse_state_dict(sd, identity=False, pool=False)


def test_others_lists_called_branches_are_left():
    other = {"s.branches.0.0.conv1.weight": torch.rand(4, 4, 3, 3), "s.branches.1.0.bn1.weight": torch.rand(4)}
    inside = state_dict_of(RepVGGBlock(6), "s.branches.1.3.")
    fused = fuse_state_dict({**other, **inside})
    assert fused.keys() == {*other, "s.branches.1.3.weight", "s.branches.1.3.bias"}
    listed = {**state_dict_of(RepVGGBlock(6), "branches.0."), "head.weight": torch.rand(3)}
    assert fuse_state_dict(listed).keys() == {"branches.0.weight", "branches.0.bias", "head.weight"}


def test_a_sum_of_blocks_is_no_list_of_blocks():
    with pytest.raises(CheckpointError, match="branch 0 is a block itself.*fuse it as a model"):
        fuse_state_dict(state_dict_of(RepVGGBlock(6), "a.branches.0."))


@pytest.mark.parametrize("branch", [ConvBNBranch, IdentityBranch])
def test_which_channels_a_part_is_of_no_key_tells(branch):
    part = partial(SliceBranch, branch=branch, channels=(0, 2))
    for kind in (part, partial(ScaledBranch, branch=part)):
        with pytest.raises(CheckpointError, match="branch 1 works on a part of the channels.*fuse it as a model"):
            fuse_state_dict(state_dict_of(ReparamBlock(ConvSpec(6), [ConvBranch, kind])), identity=True)
    with pytest.raises(CheckpointError, match="branch 0 works on a part of the channels"):
        fuse_state_dict(state_dict_of(BUILD["ChunkConv"](8, groups=8)))


def test_a_block_without_a_convolution():
    with pytest.raises(CheckpointError, match="no convolution"):
        fuse_state_dict(state_dict_of(ReparamBlock(ConvSpec(6), [partial(IdentityBranch, bn=True)])))


def test_the_network_of_the_home_page(tmp_path):
    net = nn.Sequential(RepSRBlock(3, 16), nn.PReLU(16), RepSRBlock(16, 12), nn.PixelShuffle(2))
    randomise(net, 0).eval()
    torch.save(net.state_dict(), tmp_path / "own.pth")
    report = inspect_file(tmp_path / "own.pth")
    assert report.blocks == {"RepSRBlock": 2} and not report.problems
    assert report.fused_numbers == sum(value.numel() for value in fuse(net).state_dict().values())
    assert [row.kind for row in fuse_file(tmp_path / "own.pth", tmp_path / "plain.pth").blocks] == ["RepSRBlock"] * 2
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(16), nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)
    )
    plain.load_state_dict(torch.load(tmp_path / "plain.pth"))
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in fuse(net).state_dict().items())


@pytest.mark.parametrize(
    "name",
    [name for name in KINDS if isinstance(KINDS[name](ConvSpec(6, kernel_size=5)), ConvBlock) and name != "ChunkConv"],
)
def test_every_block_of_the_contract_is_right_or_asks(name):
    net, right = net_of(KINDS[name](ConvSpec(6, kernel_size=5))), 0
    expected = fuse(net).state_dict()
    usual = {"pool": "pool" in name, "dilations": DILATIONS.get(name.split()[0])}
    for told in ({}, {**usual, "identity": True}, {**usual, "identity": False}):
        with contextlib.suppress(CheckpointError):
            fused = fuse_state_dict(net.state_dict(), **told)
            same = all(torch.allclose(fused[key], value, rtol=1e-11) for key, value in expected.items())
            assert same or told, "wrong without being told anything"
            right += same
    assert right
