"""What a layout is: the keys that identify a block, and how the block is built from its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from typing import Any, TypeVar, Union

from torch import Tensor

from ...branches import Branch
from ...errors import CheckpointError

Tensors = Mapping[str, Tensor]
Names = dict[str, Any]
"""Official name to ours (a str), for modules or single tensors; None for what does not affect the output."""

T = TypeVar("T")
PerBlock = Union[T, Mapping[str, T], None]  # noqa: UP007  # mypy takes no alias that begins with a TypeVar and |
"""A value for all blocks, or values by shell pattern of the block's name; None if not given."""

_QUESTIONS = {
    "eps": "the eps of its batch norms (1e-3 in the detectors that this block is from, 1e-5 in torch): pass eps",
    "identity": "whether it adds its input: pass identity=True or False",
    "pool": "whether it adds the average of its window: pass pool=True or False",
    "groups": "how many groups its channels form: pass groups",
    "dilations": "how far apart the taps of its small kernels are: pass dilations, one number for each kernel",
}


@dataclass(frozen=True)
class Options:
    """What keys leave open: for all blocks or by pattern, as `fuse_state_dict` takes it. `at` picks one block's."""

    eps: Any = None
    identity: Any = None
    groups: Any = None
    dilations: Any = None
    bias: Any = True
    with_13: Any = False
    pool: Any = None

    def at(self, name: str) -> Options:
        """The options for the block of this name."""
        told = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Mapping):
                value = next((one for pattern, one in value.items() if fnmatch(name, pattern)), option.default)
            told[option.name] = value
        return Options(**told)

    def ask(self, *names: str) -> None:
        """Refuse to guess these options.

        Raises:
            CheckpointError: if some are not given; the message names them.
        """
        if untold := [_QUESTIONS[name] for name in names if getattr(self, name) is None]:
            raise CheckpointError(
                f"the keys do not say {'; nor '.join(untold)} (on the command line: --{' and --'.join(names)}); if "
                "blocks differ, pass a dict by the pattern of their names: {'stage1.*': ..., '*': ...}"
            )


@dataclass(frozen=True)
class Part:
    """One of our blocks, and the tensors of a state dict that belong to it."""

    block: Callable[[], Branch]
    names: Names
    fused: str
    """The name of the convolution in the authors' inference code."""
    given: Tensors = field(default_factory=dict)
    """Tensors that are not only renamed but computed, under our names; their official names map to None above."""
    kind: str = ""
    """Its name in reports, if not the name of the layout."""


@dataclass(frozen=True)
class Layout:
    """The keys that identify a block, and what to build for them."""

    name: str
    marks: tuple[str, ...]
    parts: Callable[[Tensors, Options], list[Part]]
    keeps: bool
    """Whether the authors' inference code still needs the tensors of the branches."""
    beside: tuple[str, ...] = ()
    """Modules of the block that its authors' inference code keeps unchanged: gates, activations, further blocks."""
    inside_of: tuple[str, ...] = ()
    """Patterns of keys next to the block that together identify a larger block around it, which authors fuse whole."""


LAYOUTS: list[Layout] = []
"""In the order in which they are tried: a layout whose marks contain another's comes first."""


def layout(name: str, *marks: str, keeps: bool = False, **around: tuple[str, ...]):
    """Register a function as a layout, identified by keys that are all present; `around`: `beside` and `inside_of`."""

    def register(parts: Callable[[Tensors, Options], list[Part]]) -> Callable[[Tensors, Options], list[Part]]:
        LAYOUTS.append(Layout(name, marks, parts, keeps, **around))
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
    """In, out, kernel size and groups. Without an identity the groups cannot be read, and do not matter."""
    out_channels, per_group, size = shape(t, key)
    if identity not in t:
        return per_group, out_channels, size, 1
    channels = t[identity].numel()
    return channels, out_channels, size, max(channels // per_group, 1)


def inputs_of(t: Tensors, key: str, options: Options, *, pool: bool) -> tuple[int, int]:
    """Input channels and groups of a block whose identity has no tensor, and exists only at stride 1.

    Raises:
        CheckpointError: if an identity is possible, and the option or the groups that it depends on are not given.
    """
    out_channels, per_group, _ = shape(t, key)
    if out_channels % per_group == 0 and options.identity is not False:
        dense = out_channels == per_group
        options.ask("identity", *["pool"] * pool, *["groups"] * (not dense))
    groups = options.groups or 1
    return per_group * groups, groups


def where_asked(options: Options, default: bool) -> bool | None:
    """The `identity` of our blocks, in which None means "where the channels match"."""
    wanted = default if options.identity is None else options.identity
    return None if wanted else False


def conv_bn(official: str, ours: str) -> Names:
    """The names of a convolution with a batch norm, in their code and in our branch."""
    return {f"{official}.conv": f"{ours}.conv", f"{official}.bn": f"{ours}.norm"}
