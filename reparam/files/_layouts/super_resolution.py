"""The blocks of super-resolution: one function per layout. Read each next to the block that it builds."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ...algebra._spec import ConvSpec
from ...blocks import (
    ECB,
    EDBB,
    RRRB,
    CollapsibleLinearBlock,
    Conv3XC,
    OmniShift,
    RepMBConvBlock,
    RepRLFNBlock,
    RepSRBlock,
    RTMoSRRepConv,
)
from ...blocks._block import ReparamBlock
from ...branches import Branch, IdentityBranch, SequentialBranch
from ...errors import CheckpointError
from .base import Names, Options, Part, Tensors, layout, shape, where_asked

_EDGES = ("conv1x1_sbx", "conv1x1_sby", "conv1x1_lpl")
_EDGE = {"k0": "conv.weight", "b0": "conv.bias", "scale": "filter.scale", "bias": "filter.bias", "mask": "filter.mask"}
_PAIR = {"k0": "expand.weight", "b0": "expand.bias", "k1": "squeeze.weight", "b1": "squeeze.bias"}


def _edges(first: int) -> Names:
    return {
        f"{edge}.{name}": f"branches.{index}.{ours}"
        for index, edge in enumerate(_EDGES, start=first)
        for name, ours in _EDGE.items()
    }


def _pair(branch: int) -> Names:
    return {f"conv1x1_3x3.{name}": f"branches.{branch}.{ours}" for name, ours in _PAIR.items()}


@layout("EDBB", "rep_conv.weight", "conv1x1.weight", "conv1x1_sbx.k0", beside=("act",))
def _edbb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "rep_conv.weight")
    hidden = shape(t, "conv1x1_3x3.k0")[0] if options.with_13 else None
    expansion = hidden / outside if hidden else None
    block = partial(EDBB, inside, outside, size, expansion=expansion, identity=where_asked(options, default=False))
    names = {"rep_conv": "branches.0.conv", "conv1x1": "branches.1.conv", **_edges(2)}
    names |= _pair(5) if options.with_13 else {"conv1x1_3x3": None}
    return [Part(block, names, "rep_conv")]


@layout("ECB", "conv3x3.weight", "conv1x1_3x3.k0", "conv1x1_sbx.k0", beside=("act",))
def _ecb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "conv3x3.weight")
    expansion = shape(t, "conv1x1_3x3.k0")[0] / outside
    block = partial(ECB, inside, outside, size, expansion=expansion, identity=where_asked(options, default=False))
    return [Part(block, {"conv3x3": "branches.0.conv", **_pair(1), **_edges(2)}, "conv3x3")]


@layout("RepSR", "branch1.0.weight", "branch1.1.running_var", "branch2.2.weight")
def _repsr(t: Tensors, options: Options) -> list[Part]:
    wide, inside, size = shape(t, "branch1.0.weight")
    outside = shape(t, "branch1.2.weight")[0]
    identity = where_asked(options, default=True)
    block = partial(RepSRBlock, inside, outside, size, expansion=wide / outside, identity=identity)
    first = 0 if identity is False or inside != outside else 1  # the identity is branch 0
    names: Names = {
        f"branch{path + 1}.{index}": f"branches.{first + path}.{name}"
        for path in (0, 1)
        for index, name in enumerate(("expand", "norm", "squeeze"))
    }
    return [Part(block, names, "")]


@layout("RepSR of HAT", "branch1_3x3.weight", "branch1_bn.running_var", "branch2_1x1.weight")
def _repsr_hat(t: Tensors, options: Options) -> list[Part]:
    wide, inside, size = shape(t, "branch1_3x3.weight")
    outside = shape(t, "branch1_1x1.weight")[0]
    identity = options.identity is not False and inside == outside

    def path(spec: ConvSpec) -> Branch:  # not RepSRBlock, whose 3x3 has a bias
        convs = nn.Conv2d(inside, wide, size, bias=False), nn.Conv2d(wide, outside, 1)  # type: ignore[arg-type]  # size is of two numbers
        return SequentialBranch(spec, convs[0], nn.BatchNorm2d(wide), convs[1])

    block = partial(ReparamBlock, ConvSpec(inside, outside, size), [path, path, *[IdentityBranch] * identity])
    names: Names = {
        f"branch{index + 1}_{name}": f"branches.{index}.layers.{layer}"
        for index in (0, 1)
        for layer, name in enumerate(("3x3", "bn", "1x1"))
    }
    return [Part(block, names, "rep_conv")]


@layout(
    "RTMoSR's RepConv",
    *("conv_3x3_rep.weight", "conv1.k0", "conv2.weight", "conv3.conv.0.weight", "conv3.sk.weight", "alpha"),
    keeps=True,
)
def _rtmosr(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "conv2.weight")
    expansion = shape(t, "conv1.k0")[0] / outside
    gain = shape(t, "conv3.conv.0.weight")[0] // inside
    first, second, third = (f"branches.{index}.branch" for index in range(3))
    span = {"conv3.sk": f"{third}.branches.0.conv", "conv3.conv": f"{third}.branches.1.layers"}
    names: Names = {"conv2": f"{first}.conv", **span, "conv3.eval_conv": None, "conv_3x3_rep": None, "alpha": None}
    names |= {f"conv1.{name}": f"{second}.{ours}" for name, ours in _PAIR.items()}
    scales = {
        f"branches.{index}.scale.scale": t["alpha"][theirs : theirs + 1] for index, theirs in enumerate((1, 0, 2))
    }
    block = partial(RTMoSRRepConv, inside, outside, size, expansion=expansion, gain=gain)
    return [Part(block, names, "conv_3x3_rep", scales)]


_SIZES = ("5x5", "3x3", "1x1")


@layout("OmniShift", "conv5x5_reparam.weight", *(f"conv{size}.weight" for size in _SIZES), keeps=True)
def _omnishift(t: Tensors, options: Options) -> list[Part]:
    channels, _, size = shape(t, "conv5x5.weight")
    shared, bias = "alpha" in t, "conv5x5.bias" in t
    names: Names = {f"conv{taps}": f"branches.{index}.branch.conv" for index, taps in enumerate(_SIZES)}
    names |= {"conv5x5_reparam": None, "alpha": None, **{f"alpha{term}": None for term in range(1, 5)}}
    alphas = list(t["alpha"].split(1)) if shared else [t[f"alpha{term}"].flatten() for term in range(1, 5)]
    scales = {f"branches.{3 - term}.scale.scale": alpha for term, alpha in enumerate(alphas)}  # x is our last one
    sizes: Any = {"groups": channels, "bias": bias, "shared": shared, "conv_bias": bias}
    return [Part(partial(OmniShift, channels, channels, size, **sizes), names, "conv5x5_reparam", scales)]


@layout("RepRLFN", "rbr_3x3_branch.weight", "rbr_3x1_branch.weight", "rbr_1x3_branch.weight", "rbr_1x1_branch.weight")
def _reprlfn(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "rbr_3x3_branch.weight")
    names: Names = {
        f"rbr_{taps}_branch": f"branches.{index}.conv" for index, taps in enumerate(("3x3", "3x1", "1x3", "1x1"))
    }
    return [Part(partial(RepRLFNBlock, inside, outside, size, identity=True), names, "rbr_reparam")]


@layout(
    "SPAN's Conv3XC",
    "conv.0.weight",
    "conv.1.weight",
    "conv.2.weight",
    "sk.weight",
    keeps=True,
    inside_of=("*_rep*.weight",),
)
def _conv3xc(t: Tensors, options: Options) -> list[Part]:
    wide, inside, _ = shape(t, "conv.0.weight")
    outside, _, size = shape(t, "sk.weight")[0], *shape(t, "conv.1.weight")[1:]
    names: Names = {"conv": "branches.1.layers", "sk": "branches.0.conv"}
    return [Part(partial(Conv3XC, inside, outside, size, gain=wide // inside), names, "eval_conv")]


@layout("PlainUSR's RepMBConv", "expand_conv.weight", "fea_conv.weight", "reduce_conv.weight", "se.tensor")
def _repmbconv(t: Tensors, options: Options) -> list[Part]:
    wide, inside, _ = shape(t, "expand_conv.weight")
    outside = shape(t, "reduce_conv.weight")[0]
    if "se.se.1.weight" not in t:
        raise CheckpointError("'se.se.1.weight' is missing")
    sizes: Any = {"expansion": wide // inside, "gate_reduction": wide // t["se.se.1.weight"].shape[0]}
    block = partial(RepMBConvBlock, inside, outside, shape(t, "fea_conv.weight")[2], **sizes)
    gated = "branches.0.layers.1.branches.0.layers"
    names: Names = {"expand_conv": "branches.0.layers.0", "reduce_conv": "branches.0.layers.2"}
    names |= {"fea_conv": f"{gated}.0", "se.tensor": f"{gated}.1.vector"}
    return [Part(block, {**names, "se.se.1": f"{gated}.1.reduce", "se.se.3": f"{gated}.1.expand"}, "")]


@layout("FMEN's RRRB", "expand_conv.weight", "fea_conv.weight", "reduce_conv.weight")
def _rrrb(t: Tensors, options: Options) -> list[Part]:
    wide, inside, _ = shape(t, "expand_conv.weight")
    outside = shape(t, "reduce_conv.weight")[0]
    block = partial(RRRB, inside, outside, shape(t, "fea_conv.weight")[2], expansion=wide // inside)
    names: Names = {
        "expand_conv": "branches.0.layers.0",
        "fea_conv": "branches.0.layers.1.branches.0.conv",
        "reduce_conv": "branches.0.layers.2",
    }
    return [Part(block, names, "rep_conv")]


@layout(
    "FMEN's HFAB",
    *("bn1.running_var", "squeeze.weight", "bn2.running_var", "excitate.weight", "bn3.running_var"),
    beside=("convs",),
)
def _hfab(t: Tensors, options: Options) -> list[Part]:
    parts = []
    for name, before, after in (("squeeze", "bn1", None), ("excitate", "bn2", "bn3")):
        outside, inside, size = shape(t, f"{name}.weight")
        names: Names = {before: "layers.0", name: "layers.1"}
        names |= {after: "layers.2"} if after else {}
        block = partial(_normed_conv, ConvSpec(inside, outside, size), bn_after=after is not None)
        parts.append(Part(block, names, name))
    return parts


def _normed_conv(spec: ConvSpec, bn_after: bool) -> Branch:
    conv = spec.replace(padding=0).new_conv()
    after = [nn.BatchNorm2d(spec.out_channels)] if bn_after else []
    return SequentialBranch(spec, nn.BatchNorm2d(spec.in_channels), conv, *after)


def _sesr(t: Tensors, options: Options, first: str, second: str, weight: str) -> list[Part]:
    hidden, inside, size = shape(t, f"{first}.{weight}")
    outside = shape(t, f"{second}.{weight}")[0]
    identity = where_asked(options, default=size == (3, 3))  # the 5x5 ones at both ends have none
    block = partial(CollapsibleLinearBlock, inside, outside, size, hidden_channels=hidden, identity=identity)
    names: Names = {}
    for official, ours in ((first, "branches.0.expand"), (second, "branches.0.squeeze")):
        names |= {f"{official}.{weight}": f"{ours}.weight", f"{official}.bias": f"{ours}.bias"}
    return [Part(block, names, "")]


for _first, _second, _weight in (
    ("conv_kxk", "conv_1x1", "kernel"),
    ("conv_kxk", "conv_1x1", "weight"),
    ("conv_expand", "conv_squeeze", "weight"),
):
    _marks = (f"{_first}.{_weight}", f"{_second}.{_weight}")
    layout("SESR", *_marks)(partial(_sesr, first=_first, second=_second, weight=_weight))
