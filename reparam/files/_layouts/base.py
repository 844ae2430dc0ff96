"""What a layout is: the names by which a block is known, and how it is built from its tensors."""

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
"""Official name to ours (a str), of modules or of single tensors; None for what the function does not depend on."""

T = TypeVar("T")
PerBlock = Union[T, Mapping[str, T], None]  # noqa: UP007  # mypy takes no alias that begins with a TypeVar and |
"""A value for all blocks, or values by shell pattern of the block's name; None where nothing is told."""

_QUESTIONS = {
    "eps": "eps of the batch norms (1e-3 in the detectors that this block is from, torch's is 1e-5): pass eps",
    "identity": "whether it adds its input: pass identity=True or False",
    "pool": "whether it adds the average of its window: pass pool=True or False",
    "groups": "in how many groups its channels are: pass groups",
    "dilations": "how far apart the taps of its small kernels are: pass dilations, a number for each of them",
}


@dataclass(frozen=True)
class Options:
    """What keys leave open, for all blocks or by pattern, as `fuse_state_dict` takes it; by `at`, of one block."""

    eps: Any = None
    identity: Any = None
    groups: Any = None
    dilations: Any = None
    bias: Any = True
    with_13: Any = False
    pool: Any = None

    def at(self, name: str) -> Options:
        """What is told of the block of this name."""
        told = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Mapping):
                value = next((one for pattern, one in value.items() if fnmatch(name, pattern)), option.default)
            told[option.name] = value
        return Options(**told)

    def ask(self, *names: str) -> None:
        """Refuses to guess.

        Raises:
            CheckpointError: if one of these is not told; all that are not are named.
        """
        if untold := [_QUESTIONS[name] for name in names if getattr(self, name) is None]:
            raise CheckpointError(
                f"no key tells {'; nor '.join(untold)} (to the command as --{' and --'.join(names)}); where blocks "
                "differ, by the pattern of their names: {'stage1.*': ..., '*': ...}"
            )


@dataclass(frozen=True)
class Part:
    """One of our blocks, and which tensors of a state dict are its."""

    block: Callable[[], Branch]
    names: Names
    fused: str
    """Where the authors' inference code has the convolution."""
    given: Tensors = field(default_factory=dict)
    """What no renaming makes of the tensors, under our names; their official names are None above."""
    kind: str = ""
    """What it is called, if not by the name of the layout."""


@dataclass(frozen=True)
class Layout:
    """The names that give a block away, and what to build for them."""

    name: str
    marks: tuple[str, ...]
    parts: Callable[[Tensors, Options], list[Part]]
    keeps: bool
    """Whether the authors' inference code still wants the tensors of the branches."""
    beside: tuple[str, ...] = ()
    """Modules of the block that its authors' inference code keeps as they are: gates, activations, further blocks."""
    inside_of: tuple[str, ...] = ()
    """Patterns of keys beside the block, which together tell of a larger one around it that the authors fuse whole."""


LAYOUTS: list[Layout] = []
"""In the order in which they are tried: a layout whose marks contain another's comes first."""


def layout(name: str, *marks: str, keeps: bool = False, **around: tuple[str, ...]):
    """Registers a function as a layout, known by keys that are all there; `around` is `beside` and `inside_of`."""

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
    """In, out, kernel size and groups; without an identity the groups cannot be seen, and do not matter."""
    out_channels, per_group, size = shape(t, key)
    if identity not in t:
        return per_group, out_channels, size, 1
    channels = t[identity].numel()
    return channels, out_channels, size, max(channels // per_group, 1)


def inputs_of(t: Tensors, key: str, options: Options, *, pool: bool) -> tuple[int, int]:
    """Input channels and groups of a block whose identity has no tensor, and is there at stride 1 only.

    Raises:
        CheckpointError: where an identity is possible and not told, or the groups that it depends on are not.
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
    """A convolution with a batch norm, in their code and as our branch."""
    return {f"{official}.conv": f"{ours}.conv", f"{official}.bn": f"{ours}.norm"}
