"""The branches of this library, built from their tensors: every way in which the tensors can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ...algebra._axes import NORM
from ...algebra._spec import ConvSpec
from ...blocks._block import ReparamBlock
from ...blocks._mobileie import SideBySide
from ...blocks._plainusr import LearnedGate
from ...bn._norm import NormChoice, is_norm
from ...branches import (
    AvgPoolBranch,
    Branch,
    ConvBNBranch,
    ConvBranch,
    ExpandSqueezeBranch,
    IdentityBranch,
    LoRABranch,
    ScaledBranch,
    SequentialBranch,
    SobelBranch,
)
from ...branches._edge import _EdgeBranch
from ...branches._identity import has_identity
from ...branches._stages import ChannelScale, FixedFilter, IdentityPlusPoint
from ...errors import CheckpointError
from .base import Tensors
from .own_shapes import (
    HEADS,
    below,
    first_weight,
    heads_of,
    is_small,
    numbered,
    outputs_after,
    outputs_of,
    shape_of,
    size_of,
    taps,
)


class Reading(NamedTuple):
    """One way to read some tensors."""

    kind: str
    """What `kind_of` returns for the module that it builds."""
    build: Callable[..., Any]
    """Makes a branch from its spec, or a stage of a chain from its input channels."""


def readings(t: Tensors, spec: ConvSpec, dilations: Iterator[int] | None) -> list[Reading]:
    """The ways to read the tensors of a branch; without tensors, an identity or a pool."""
    if not t:
        return [Reading("identity", IdentityBranch), Reading("pool", partial(AvgPoolBranch, conv=False))]
    if heads_of(t) == {"branches"}:
        return [reading._replace(build=_of_spec(reading.build)) for reading in _sums(t, spec)]
    kind = HEADS[heads_of(t)]
    if kind == "chain":
        return _chains(t, spec)
    if kind == "scaled":
        made = partial(ScaledBranch, shared=t["scale.scale"].numel() == 1 < spec.out_channels)
        inner = readings(below(t, "branch"), spec, dilations)
        return [Reading(f"scaled {way.kind}", partial(made, branch=way.build)) for way in inner]
    if kind == "lora":
        return [Reading(kind, partial(LoRABranch, rank=t["up.weight"].shape[1]))]
    bn, bias = norm_of(below(t, "norm"), spec.ndim), "conv.bias" in t
    if kind == "identity":
        return [
            Reading(kind, partial(IdentityBranch, bn=bn)),
            Reading("pool", partial(AvgPoolBranch, conv=False, bn=bn)),
        ]
    if kind == "expand":
        return [Reading(kind, _expand_squeeze(t, bn))]
    if kind == "edge":  # a Laplacian differs in the mask only, which is in the file
        return [Reading(kind, partial(SobelBranch, bias=bias))]
    if kind == "pool":
        return [Reading(kind, partial(AvgPoolBranch, bn=bn))]
    if kind == "side":
        return [Reading(kind, _side_by_side(t, spec))]
    return _convs(t, spec, bn, bias, dilations)


def _convs(t: Tensors, spec: ConvSpec, bn: NormChoice, bias: bool, dilations: Iterator[int] | None) -> list[Reading]:
    size = size_of(t["conv.weight"])
    options: dict[str, Any] = {"kernel_size": size, "bias": bias}
    if is_small(size, spec.kernel_size) and dilations is not None:
        options["dilation"] = next(dilations)
    kind = f"conv {shape_of(size, spec.kernel_size)}"
    conv = Reading(kind, partial(ConvBNBranch, bn=bn, **options) if bn else partial(ConvBranch, **options))
    bare = not bn and not bias and all(k == 1 for k in size)
    return [conv, Reading("pool", AvgPoolBranch)] if bare else [conv]


def _expand_squeeze(t: Tensors, bn: NormChoice) -> Callable[..., Branch]:
    expand = t["expand.weight"]
    order = "1x1-kxk" if all(k == 1 for k in size_of(expand)) else "kxk-1x1"
    sizes: Any = {"hidden_channels": expand.shape[0], "order": order, "bias": "expand.bias" in t}
    return partial(ExpandSqueezeBranch, bn=bn, **sizes)


def _side_by_side(t: Tensors, spec: ConvSpec) -> Callable[..., Branch]:
    convs, norms = numbered(t, "convs"), numbered(t, "norms")
    sizes = [size_of(conv["weight"]) for conv in convs.values()]
    bn = norm_of(norms[0], spec.ndim) if norms else False
    expansion = convs[0]["weight"].shape[0] // spec.out_channels
    return partial(SideBySide, sizes=sizes, expansion=expansion, shared=not numbered(t, "norm_convs"), bn=bn)


def _chains(t: Tensors, spec: ConvSpec) -> list[Reading]:
    """Every way to read a `SequentialBranch`: a product over its layers."""
    layers, channels = numbered(t, "layers"), spec.in_channels
    if list(layers) != list(range(len(layers))):
        raise CheckpointError(f"'layers' has tensors only at {list(layers)}, and the keys do not say what is between")
    ways: list[list[tuple[str, nn.Module]]] = []
    for layer in layers.values():
        ways.append(_stages(layer, channels, spec))
        channels = outputs_after(layer, channels)
    return [
        Reading(f"[{','.join(kind for kind, _ in way)}]", _chain_of([build for _, build in way]))
        for way in product(*ways)
    ]


def _chain_of(builds: list[Any]) -> Callable[..., Branch]:
    return lambda spec: SequentialBranch(spec, *(build() for build in builds))


def _stages(t: Tensors, channels: int, spec: ConvSpec) -> list[tuple[str, Any]]:
    """What a layer of a chain may be, and how to make it."""
    ndim, keys = spec.ndim, set(t)
    if any(key.startswith("branches.") for key in keys):
        return [(reading.kind, reading.build) for reading in nested(t, channels)]
    if "running_var" in keys:
        norm: Any = norm_of(t, ndim)  # a callable, as there are tensors
        return [("norm", partial(norm, t["running_var"].numel()))]
    if keys == {"scale"}:
        return [("scale", partial(ChannelScale, channels, ndim, shared=channels > t["scale"].numel() == 1))]
    if {"scale", "mask"} <= keys:
        return [("filter", partial(_filter, t["mask"].shape[2:], channels, "bias" in keys))]
    if "vector" in keys:
        return [("gate", partial(LearnedGate, channels, ndim, channels // t["reduce.weight"].shape[0]))]
    weight = t["weight"]
    groups, size = channels // weight.shape[1], size_of(weight)
    unit = partial(IdentityPlusPoint, channels, groups, ndim, out_channels=weight.shape[0])
    if "unit" in keys:
        return [("unit", partial(unit, keep=True))]
    conv = ConvSpec(channels, weight.shape[0], size, padding=0, groups=groups, bias="bias" in keys, ndim=ndim).new_conv
    if weight.shape[0] == channels and keys == {"weight"} and all(k == 1 for k in size):
        return [("square", conv), ("unit", unit)]
    return [("conv", conv)]


def _filter(size: tuple[int, ...], channels: int, bias: bool) -> FixedFilter:
    ones = (1,) * len(size)
    return FixedFilter(torch.zeros(size), channels, ones, ones, scale=1.0, bias=bias)


def nested(t: Tensors, channels: int) -> list[Reading]:
    """What a block inside a chain may be, given its input channels."""
    parts = numbered(t, "branches")
    first = first_weight(next(iter(parts.values())))
    size, groups = taps(t), channels // first.shape[1]
    spec = ConvSpec(channels, outputs_of(parts), size, padding=0, groups=groups, ndim=len(size))
    return _sums(t, spec)


def _sums(t: Tensors, spec: ConvSpec) -> list[Reading]:
    ways = [readings(part, spec, None) for part in numbered(t, "branches").values()]
    ends = [[], *[[Reading("identity", IdentityBranch)]] * has_identity(spec)]
    return [joined(list(way) + end, spec) for way in product(*ways) for end in ends]


def _of_spec(build: Callable[[], Branch]) -> Callable[[ConvSpec], Branch]:
    return lambda spec: build()


def joined(parts: list[Reading], spec: ConvSpec, **options: Any) -> Reading:
    """The block of these branches."""
    build = partial(ReparamBlock, spec, [part.build for part in parts], **options)
    return Reading(f"({'+'.join(part.kind for part in parts)})", build)


def norm_of(t: Tensors, ndim: int) -> NormChoice:
    """How to make a batch norm of these tensors; False if there are none."""
    affine = "weight" in t or "bias" in t
    return (lambda channels: NORM[ndim](channels, affine=affine)) if t else False


def kind_of(module: Any) -> str:
    """The kind that a reading of its tensors gives to a branch or a block."""
    if isinstance(module, ReparamBlock):
        return f"({'+'.join(map(kind_of, module.branches))})"
    if isinstance(module, SequentialBranch):
        return f"[{','.join(map(_kind_of_stage, module.layers))}]"
    if isinstance(module, ScaledBranch):
        return f"scaled {kind_of(module.branch)}"
    kind = kind_of_class(type(module))
    return f"conv {shape_of(module.conv.kernel_size, module.spec.kernel_size)}" if kind == "conv" else kind


def kind_of_class(made: type) -> str:
    """The same for classes of branches that are neither chains nor blocks."""
    kinds: dict[type, str] = {
        IdentityBranch: "identity",
        AvgPoolBranch: "pool",
        _EdgeBranch: "edge",
        SideBySide: "side",
    }
    kinds |= {ExpandSqueezeBranch: "expand", ConvBranch: "conv", ConvBNBranch: "conv"}
    kinds |= {ScaledBranch: "scaled", LoRABranch: "lora"}
    return next((name for kind, name in kinds.items() if issubclass(made, kind)), made.__name__)


def _kind_of_stage(module: nn.Module) -> str:
    if is_norm(module) or isinstance(module, ReparamBlock):
        return kind_of(module) if isinstance(module, ReparamBlock) else "norm"
    if isinstance(module, _ConvNd):
        plain = module.bias is None and all(k == 1 for k in module.kernel_size)
        return "square" if plain and module.in_channels == module.out_channels else "conv"
    kinds: dict[type, str] = {
        ChannelScale: "scale",
        FixedFilter: "filter",
        IdentityPlusPoint: "unit",
        LearnedGate: "gate",
    }
    return kinds.get(type(module), type(module).__name__)
