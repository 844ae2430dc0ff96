"""The blocks in a state dict, recognized by their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor

from ..bn._norm import norms
from ..branches import Branch
from ..errors import CheckpointError
from ._keys import filled, translate
from ._layouts import LAYOUTS, OWN, Layout, Options, Part, own_blocks
from ._tree import some_keys

_NOTHING_TOLD = Options()


@dataclass(frozen=True)
class FoundBlock:
    """A block of a state dict."""

    name: str
    """Dotted name of the module in the authors' code; empty if the state dict is one block."""
    layout: Layout
    block: Branch
    """Our block, with the weights loaded, in float64 and eval mode."""
    fused: str
    """Dotted name of the convolution in the authors' inference code."""
    keys: tuple[str, ...]
    """The keys of its tensors in the state dict."""
    kind: str
    """Its name in reports."""

    def kernel_keys(self) -> dict[str, str]:
        """Keys of the convolution in the state dict, by those of an `nn.Conv2d`."""
        keys = ("weight", "bias") if self.block.spec.bias else ("weight",)
        return {key: f"{self.fused}.{key}".removeprefix(".") for key in keys}


def find_blocks_in(state_dict: Mapping[str, Tensor], options: Options = _NOTHING_TOLD) -> list[FoundBlock]:
    """The blocks of a state dict, recognized by their keys. Options and errors are those of `fuse_state_dict`."""
    found = []
    for name, layout, part in parts_in(state_dict, options):
        prefix = f"{name}." if name else ""
        inside = _inside(state_dict, prefix)
        with _named(name, layout):
            block = filled(part, inside)
        set_eps(block, options.at(name).eps)
        used = tuple(prefix + key for key in inside if translate(part.names, key) is not None)
        found.append(
            FoundBlock(name, layout, block, f"{prefix}{part.fused}".removesuffix("."), used, part.kind or layout.name)
        )
    _check_nothing_is_left(state_dict, found)
    return found


def parts_in(state_dict: Mapping[str, Tensor], options: Options) -> Iterator[tuple[str, Layout, Part]]:
    """The blocks of a state dict, not yet built, with their dotted names.

    Raises:
        CheckpointError: if the shapes make up no block.
    """
    for prefix, layout in recognised(state_dict):
        name = prefix.removesuffix(".")
        with _named(name, layout):
            parts = layout.parts(_inside(state_dict, prefix), options.at(name))
        for part in parts:
            yield name, layout, part


def _check_nothing_is_left(state_dict: Mapping[str, Tensor], found: Sequence[FoundBlock]) -> None:
    """Check that every key under a block's name belongs to the block or is known to stay: it is fused whole or refused.

    Raises:
        CheckpointError: if there are other keys; the message names them.
    """
    used = {key for block in found for key in (*block.keys, *block.kernel_keys().values())}
    for name, kind, layout in dict.fromkeys((block.name, block.kind, block.layout) for block in found):
        prefix = f"{name}." if name else ""
        inside = {key: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
        kept = tuple(f"{prefix}{module}." for module in layout.beside)
        if strangers := {key: t for key, t in inside.items() if key not in used and not key.startswith(kept)}:
            raise CheckpointError(
                f"{_place(name)} has the keys of {kind} and others: {some_keys(strangers)}. It is a variant that is "
                "not known here; fuse it with its own code, or as a model with reparam.fuse"
            )
        _check_is_whole(state_dict, name, layout)


def _check_is_whole(state_dict: Mapping[str, Tensor], name: str, layout: Layout) -> None:
    """Refuse a block that is part of a larger one that its authors fuse as a whole."""
    outer = name.rpartition(".")[0]
    beside = list(_inside(state_dict, f"{outer}." if outer else ""))
    marks = [next((key for key in beside if fnmatch(key, pattern)), None) for pattern in layout.inside_of]
    if marks and all(marks):
        raise CheckpointError(
            f"{_place(name)} has the keys of {layout.name}, but is part of {_place(outer)}, which its authors fuse as "
            f"a whole (including {', '.join(map(repr, marks))}) and which is not known here; fuse it with its own code"
        )


@contextmanager
def _named(name: str, layout: Layout) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # shapes that anyone may have written run torch into anything
        raise CheckpointError(f"{_place(name)} has the keys of {layout.name}, but cannot be used: {error}") from error


def _place(name: str) -> str:
    return f"the block {name!r}" if name else "the state dict"


def _inside(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}


def looked_for(state_dict: Mapping[str, Tensor]) -> str:
    """What the keys were compared with, and what the keys are."""
    kinds = dict.fromkeys(f"{layout.name} ({layout.marks[0]})" for layout in (*LAYOUTS, OWN))
    return f"looked for keys of {', '.join(kinds)}; found {len(state_dict)} keys: {some_keys(state_dict)}"


def recognised(state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, Layout]]:
    """The prefix of every block, and its layout: the first one whose marks are all present."""
    taken: dict[str, Layout] = {}
    for layout in LAYOUTS:
        mark, *others = layout.marks
        for key in state_dict:
            prefix = key.removesuffix(mark)
            if prefix == key or (prefix and not prefix.endswith(".")) or _is_part(prefix, taken):
                continue
            if all(prefix + other in state_dict for other in others):
                taken[prefix] = layout
                yield prefix, layout
    for prefix in own_blocks(state_dict):
        yield prefix, OWN


def _is_part(prefix: str, taken: Mapping[str, Layout]) -> bool:
    """Whether this is a block that was found already, or lies inside one (other than in a module that stays)."""
    return any(
        prefix.startswith(outer) and not prefix[len(outer) :].startswith(tuple(f"{name}." for name in layout.beside))
        for outer, layout in taken.items()
    )


def set_eps(block: Branch, eps: float | None) -> None:
    """Set the eps of a block's batch norms, if one is given."""
    for _, bn in norms(block):
        bn.eps = bn.eps if eps is None else eps
