"""What a layout is: the names by which a block is known, and how it is built from its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...branches import Branch
from ...errors import CheckpointError

Tensors = Mapping[str, Tensor]
Names = dict[str, Any]
"""Official name to ours (a str), of modules or of single tensors; None for what the function does not depend on."""


@dataclass(frozen=True)
class Options:
    """What a layout leaves open; see `fuse_state_dict`."""

    identity: bool | None = None
    with_13: bool = False
    pool: bool = False


@dataclass(frozen=True)
class Part:
    """One of our blocks, and which tensors of a state dict are its."""

    block: Callable[[], Branch]
    names: Names
    fused: str
    """Where the authors' inference code has the convolution."""
    given: Tensors = field(default_factory=dict)
    """What no renaming makes of the tensors, under our names; their official names are None above."""


@dataclass(frozen=True)
class Layout:
    """The names that give a block away, and what to build for them."""

    name: str
    marks: tuple[str, ...]
    parts: Callable[[Tensors, Options], list[Part]]
    keeps: bool
    """Whether the authors' inference code still wants the tensors of the branches."""


LAYOUTS: list[Layout] = []
"""In the order in which they are tried: a layout whose marks contain another's comes first."""


def layout(name: str, *marks: str, keeps: bool = False):
    """Registers a function as a layout: known by `marks`, keys that are all there."""

    def register(parts: Callable[[Tensors, Options], list[Part]]) -> Callable[[Tensors, Options], list[Part]]:
        LAYOUTS.append(Layout(name, marks, parts, keeps))
        return parts

    return register


def shape(t: Tensors, key: str) -> tuple[int, int, tuple[int, ...]]:
    """Output channels, input channels per group and kernel size of a convolution's weight."""
    if key not in t:
        raise CheckpointError(f"{key!r} is missing")
    out_channels, in_channels, *size = t[key].shape if t[key].dim() == 4 else (0, 0)
    if not size or not t[key].numel():
        raise CheckpointError(f"{key!r} must be the weight of a 2d convolution, but has shape {tuple(t[key].shape)}")
    return out_channels, in_channels, tuple(size)


def grouped(t: Tensors, key: str, identity: str) -> tuple[int, int, tuple[int, ...], int]:
    """In, out, kernel size and groups; without an identity the groups cannot be seen, and do not matter."""
    out_channels, per_group, size = shape(t, key)
    if identity not in t:
        return per_group, out_channels, size, 1
    channels = t[identity].numel()
    return channels, out_channels, size, max(channels // per_group, 1)


def where_asked(options: Options, default: bool) -> bool | None:
    """The `identity` of our blocks, in which None means "where the channels match"."""
    wanted = default if options.identity is None else options.identity
    return None if wanted else False


def conv_bn(official: str, ours: str) -> Names:
    """A convolution with a batch norm, in their code and as our branch."""
    return {f"{official}.conv": f"{ours}.conv", f"{official}.bn": f"{ours}.norm"}
