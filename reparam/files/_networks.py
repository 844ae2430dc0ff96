"""Networks recognized by the keys of their state dicts. One function per layout reads the sizes from the shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import CheckpointError
from ..fusing._fuse import skeleton
from ..models import ECBSR, EDSR, SESR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR
from ..models._registry import Network
from ._found_blocks import parts_in
from ._layouts import Names, Options, Tensors


class Blueprint(NamedTuple):
    """What to build for a state dict, and how its keys map to ours."""

    network: type[Network]
    options: dict[str, Any]
    names: Names | None
    """Their names to ours; None if they are the same."""
    fused: bool = False
    """Whether the blocks have been replaced by convolutions."""
    asks_range: bool = False
    """Whether codebases with different image ranges share these keys."""

    def build(self) -> Network:
        """The network with new weights."""
        net = self.network(**self.options)
        return skeleton(net) if self.fused else net  # type: ignore[return-value]  # it stays what it is


class NetworkLayout(NamedTuple):
    """The keys that identify a network, and how to read its sizes."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[Tensors], Blueprint]


LAYOUTS: list[NetworkLayout] = []
"""In the order in which they are tried."""


def _layout(name: str, *marks: str):
    def register(read: Callable[[Tensors], Blueprint]) -> Callable[[Tensors], Blueprint]:
        LAYOUTS.append(NetworkLayout(name, marks, read))
        return read

    return register


def recognise(state_dict: Mapping[str, Tensor]) -> tuple[str, Blueprint] | None:
    """The name and blueprint of the first layout that fits; None if none does.

    Raises:
        CheckpointError: if the marks of a layout are there, but not the tensors that its sizes are read from.
    """
    for layout in LAYOUTS:
        if all(mark in state_dict for mark in layout.marks):
            try:
                return layout.name, layout.read(state_dict)
            except CheckpointError as error:
                raise CheckpointError(f"looks like {layout.name}, but does not fit: {error}") from error
    return None


def _conv(t: Tensors, key: str) -> tuple[int, int]:
    """Output and input channels of a convolution."""
    if key not in t:
        raise CheckpointError(f"{key!r} is missing")
    if t[key].dim() != 4 or not t[key].numel():
        raise CheckpointError(f"{key!r} must be the weight of a 2d convolution, but has shape {tuple(t[key].shape)}")
    return t[key].shape[0], t[key].shape[1]


def _count(t: Tensors, key: str, step: int = 1) -> int:
    """How many consecutive numbers, from 0, the placeholder in a key takes."""
    pattern = re.compile(re.escape(key).replace(r"\{\}", "([0-9]{1,6})"))
    found = {int(match[1]) for name in t if (match := pattern.match(name))}
    return next(index for index in range(len(found) + 1) if index * step not in found)


def _scale(t: Tensors, last: str, colors: int) -> int:
    """The scale, from the channels of the last convolution."""
    outside = _conv(t, last)[0]
    scale = isqrt(outside // colors)
    if scale < 1 or colors * scale**2 != outside:
        raise CheckpointError(f"{last!r} has {outside} output channels, but expected {colors} times a square")
    return scale


def _body(t: Tensors, first: str, last: str, slopes: Iterable[str]) -> dict[str, Any]:
    """The sizes of a network of convolutions and activations. `first`, `last` and `slopes` are keys of its tensors."""
    channels, colors = _conv(t, first)
    options = {"channels": channels, "colors": colors, "scale": _scale(t, last, colors)}
    return {**options, "act": "prelu"} if any(key in t for key in slopes) else options


def _inner(t: Tensors, places: Mapping[str, str]) -> Names:
    """The names inside the blocks of a state dict. `places` maps each block's place there to its place in ours."""
    inner = {name: part.names for name, _, part in parts_in(t, Options())}
    return {
        f"{theirs}.{tensor}": f"{ours}.{name}"
        for theirs, ours in places.items()
        for tensor, name in inner.get(theirs, {}).items()
    }


@_layout("ECBSR", "backbone.0.conv3x3.weight", "backbone.0.conv1x1_3x3.k0")
def _ecbsr(t: Tensors) -> Blueprint:
    last = _count(t, "backbone.{}.") - 1
    convs = ("backbone.0.conv3x3.weight", f"backbone.{last}.conv3x3.weight")
    options = {"num_blocks": last - 1, **_body(t, *convs, (f"backbone.{index}.act.weight" for index in range(last)))}
    options["expansion"] = _conv(t, "backbone.0.conv1x1_3x3.k0")[0] / options["channels"]
    names = _inner(t, {f"backbone.{index}": f"body.{2 * index}" for index in range(last + 1)})
    names |= {f"backbone.{index}.act": f"body.{2 * index + 1}" for index in range(last)}
    return Blueprint(ECBSR, options, names, asks_range=True)


def _ecbsr_fused(t: Tensors, conv: str) -> Blueprint:
    last = _count(t, "backbone.{}.") - 1
    convs = (f"backbone.0{conv}.weight", f"backbone.{last}{conv}.weight")
    options = {"num_blocks": last - 1, **_body(t, *convs, (f"backbone.{index}.act.weight" for index in range(last)))}
    names: Names = {f"backbone.{index}.act": f"body.{2 * index + 1}" for index in range(last)}
    names |= {f"backbone.{index}{conv}": f"body.{2 * index}" for index in range(last + 1)}
    return Blueprint(PlainSR, options, names, asks_range=True)


@_layout("fused ECBSR", "backbone.0.conv3x3.weight")
def _(t: Tensors) -> Blueprint:
    return _ecbsr_fused(t, ".conv3x3")


@_layout("fused ECBSR", "backbone.0.weight")
def _(t: Tensors) -> Blueprint:
    return _ecbsr_fused(t, "")


@_layout("RepSR of JL-DY", "M_block.0.weight", "M_block.2.branch1.0.weight")
def _repsr_jldy(t: Tensors) -> Blueprint:
    options = _repsr_jldy_fused(t).options
    names = _inner(t, {f"M_block.{2 * i}": f"body.{2 * i}" for i in range(1, options["num_blocks"] + 1)})
    return Blueprint(RepSR, {**options, "plain_ends": True}, {**names, "M_block": "body"})


@_layout("fused RepSR of JL-DY", "M_block.0.weight")
def _repsr_jldy_fused(t: Tensors) -> Blueprint:
    last = _count(t, "M_block.{}.", step=2) - 1
    convs = ("M_block.0.weight", f"M_block.{2 * last}.weight")
    slopes = (f"M_block.{2 * index + 1}.weight" for index in range(last))
    options = {"num_blocks": last - 1, "base": "bilinear", **_body(t, *convs, slopes)}
    return Blueprint(PlainSR, options, {"M_block": "body"})


@_layout("SESR", "input.conv_kxk.kernel", "output.conv_1x1.kernel")
def _sesr(t: Tensors) -> Blueprint:
    options = {"num_blocks": _count(t, "block{}."), "channels": _conv(t, "input.conv_1x1.kernel")[0]}
    options["hidden_channels"] = _conv(t, "input.conv_kxk.kernel")[0]
    options["scale"] = _scale(t, "output.conv_1x1.kernel", 1)
    convs, slopes = _sesr_places(options["num_blocks"])
    return Blueprint(SESR, options, _inner(t, convs) | slopes)


@_layout("fused SESR", "input.weight", "output.weight", "prelu0.alpha")
def _sesr_fused(t: Tensors) -> Blueprint:
    options = {"num_blocks": _count(t, "block{}."), "channels": _conv(t, "input.weight")[0]}
    options["scale"] = _scale(t, "output.weight", 1)
    convs, slopes = _sesr_places(options["num_blocks"])
    return Blueprint(SESR, options, convs | slopes, fused=True)


def _sesr_places(count: int) -> tuple[Names, Names]:
    """The places of the convolutions and the slopes, theirs to ours."""
    convs = {"input": "conv_first", "output": "conv_last"} | {f"block{i}": f"body.{2 * i}" for i in range(count)}
    return convs, {f"prelu{i}.alpha": f"body.{2 * i + 1}.weight" for i in range(count)}


@_layout("EDSR of BasicSR", "conv_first.weight", "body.0.conv1.weight", "conv_after_body.weight")
def _edsr(t: Tensors) -> Blueprint:
    channels, colors = _conv(t, "conv_first.weight")
    twice = "upsample.2.weight" in t
    scale = 4 if twice else _scale(t, "upsample.0.weight", channels)
    options = {"num_blocks": _count(t, "body.{}."), "channels": channels, "colors": colors, "scale": scale}
    return Blueprint(EDSR, {**options, **_residual_scale(channels)}, None)


@_layout("EDSR", "head.0.weight", "body.0.body.0.weight", "tail.1.weight")
def _edsr_original(t: Tensors) -> Blueprint:
    channels, colors = _conv(t, "head.0.weight")
    count = _count(t, "body.{}.body.")
    scale = 4 if "tail.0.2.weight" in t else _scale(t, "tail.0.0.weight", channels)
    options = {"num_blocks": count, "channels": channels, "colors": colors, "scale": scale}
    names: Names = {"head.0": "conv_first", f"body.{count}": "conv_after_body", "tail.1": "conv_last"}
    names |= {f"body.{i}.body.{2 * j}": f"body.{i}.conv{j + 1}" for i in range(count) for j in (0, 1)}
    names |= {f"tail.0.{index}": f"upsample.{index}" for index in (0, 2)}
    names |= {"sub_mean": None, "add_mean": None}
    return Blueprint(EDSR, {**options, **_residual_scale(channels), **_range(t, colors)}, names)


def _residual_scale(channels: int) -> dict[str, float]:
    """0.1 in the large network of the paper, 1 in the baseline."""
    return {"res_scale": 0.1 if channels >= 256 else 1.0}


def _range(t: Tensors, colors: int) -> dict[str, Any]:
    """Mean and range from the layer that subtracts the mean: its bias is -range * mean."""
    bias = t.get("sub_mean.bias")
    if bias is None:
        return {}
    if bias.shape != (colors,):
        raise CheckpointError(f"'sub_mean.bias' has shape {tuple(bias.shape)}, but {(colors,)} was expected")
    mean = -bias.double()
    img_range = 255.0 if float(mean.max()) > 1 else 1.0
    return {"img_range": img_range, "mean": (mean / img_range).tolist()}


@_layout("SESR of reparam", "conv_first.branches.0.expand.weight", "conv_last.branches.0.expand.weight")
def _sesr_ours(t: Tensors) -> Blueprint:
    options = {"num_blocks": _count(t, "body.{}.branches.", step=2)}
    options["hidden_channels"], _ = _conv(t, "conv_first.branches.0.expand.weight")
    options["channels"], _ = _conv(t, "conv_first.branches.0.squeeze.weight")
    options["scale"] = _scale(t, "conv_last.branches.0.squeeze.weight", 1)
    return Blueprint(SESR, options, None)


@_layout("fused SESR of reparam", "conv_first.weight", "body.1.weight", "conv_last.weight")
def _sesr_ours_fused(t: Tensors) -> Blueprint:
    options = {"num_blocks": _count(t, "body.{}.", step=2), "channels": _conv(t, "conv_first.weight")[0]}
    options["scale"] = _scale(t, "conv_last.weight", 1)
    return Blueprint(SESR, options, None, fused=True)


def _ours(network: type[Network], t: Tensors, first: str, out: str) -> Blueprint:
    """A network of ours with its blocks. A block's weights `first` and `out` give its input and output channels."""
    last = _count(t, "body.{}.branches.", step=2) - 1
    channels = _conv(t, f"body.0.{out}")[0]
    colors = _conv(t, f"body.0.{first}")[1]
    options = {"num_blocks": last - 1, "channels": channels, "colors": colors}
    options["scale"] = _scale(t, f"body.{2 * last}.{out}", colors)
    act = {"act": "prelu"} if any(f"body.{2 * index + 1}.weight" in t for index in range(last)) else {}
    return Blueprint(network, {**options, **act}, None)


@_layout("RepSR of reparam", "body.0.branches.0.expand.weight", "body.0.branches.0.norm.weight")
def _(t: Tensors) -> Blueprint:
    blueprint = _ours(RepSR, t, "branches.0.expand.weight", "branches.0.squeeze.weight")
    return _with_expansion(blueprint, t, "body.0.branches.0.expand.weight")


@_layout("ECBSR of reparam", "body.0.branches.1.expand.weight", "body.0.branches.2.filter.mask")
def _(t: Tensors) -> Blueprint:
    blueprint = _ours(ECBSR, t, "branches.0.conv.weight", "branches.0.conv.weight")
    return _with_expansion(blueprint, t, "body.0.branches.1.expand.weight")


def _with_expansion(blueprint: Blueprint, t: Tensors, expand: str) -> Blueprint:
    expansion = _conv(t, expand)[0] / blueprint.options["channels"]
    return blueprint._replace(options={**blueprint.options, "expansion": expansion})


@_layout("RepVGGSR of reparam", "body.0.branches.0.conv.weight", "body.0.branches.1.norm.weight")
def _(t: Tensors) -> Blueprint:
    return _ours(RepVGGSR, t, "branches.0.conv.weight", "branches.0.conv.weight")


@_layout(
    "QARepVGGSR of reparam", "body.0.branches.0.norm.weight", "body.0.branches.1.conv.weight", "body.0.norm.weight"
)
def _(t: Tensors) -> Blueprint:
    return _ours(QARepVGGSR, t, "branches.0.conv.weight", "branches.0.conv.weight")


@_layout("CollapsibleSR of reparam", "body.0.branches.0.expand.weight", "body.0.branches.0.squeeze.weight")
def _(t: Tensors) -> Blueprint:
    blueprint = _ours(CollapsibleSR, t, "branches.0.expand.weight", "branches.0.squeeze.weight")
    return blueprint._replace(
        options={**blueprint.options, "hidden_channels": _conv(t, "body.0.branches.0.expand.weight")[0]}
    )


@_layout("SRVGGNetCompact", "body.0.weight", "body.2.weight")
def _compact(t: Tensors) -> Blueprint:
    last = _count(t, "body.{}.", step=2) - 1
    slopes = (f"body.{2 * index + 1}.weight" for index in range(last))
    sizes = _body(t, "body.0.weight", f"body.{2 * last}.weight", slopes)
    return Blueprint(PlainSR, {"num_blocks": last - 1, **sizes}, None)
