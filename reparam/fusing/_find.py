"""Decide what `fuse` replaces in a model, and what stays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import nn

from ..branches import Branch
from ..errors import FuseError
from ..modules._match import Match, matcher
from ..modules._walk import walk
from ._foreign import ForeignBlock, Survey, has_form, survey
from ._foreign.pairs import Neighbors
from ._foreign.trace import is_any_norm

WhatIsFused = tuple[dict[str, Branch], Survey]
"""Blocks of this library by dotted name, and everything else that is fused."""

_SWAPPED = "it is not a block of this library, and keeps its keys because swap_convs was used; foreign=True fuses it"
_OUTSIDE = (
    "batch norms outside blocks stay in a model with blocks of this library, so that other layers keep their keys; "
    "batch_norms=True merges those that can be merged"
)


def find_blocks(model: nn.Module) -> dict[str, Branch]:
    """The outermost blocks of a model, and branches used on their own, by dotted name, each once."""

    outermost = walk(model, lambda module: () if isinstance(module, Branch) else module.named_children())
    return {name: module for name, module in outermost if isinstance(module, Branch)}


def find_all(
    model: nn.Module, batch_norms: bool | None = None, foreign: bool | None = None, skip: Match | None = None
) -> WhatIsFused:
    """The blocks of this library that are fused, and everything else that is; the arguments are those of `fuse`.

    Raises:
        FuseError: if `skip` matches nothing.
    """
    ours = find_blocks(model)
    outside = not ours if batch_norms is None else batch_norms
    stays = _skipped(model, skip)
    found = survey(model, outside, stays)
    blocks = {name: block for name, block in ours.items() if not _touches(block, stays)}
    others = {name: block for name, block in found.blocks.items() if not _foreign_touches(block, stays)}
    stays = stays.union(*(map(id, block.modules()) for name, block in ours.items() if name not in blocks))
    swapped = foreign is None and any("swapped_from" in vars(block) for block in ours.values())

    def unasked(told: Mapping[str, str]) -> dict[str, str]:
        return {name: why for name, why in told.items() if id(model.get_submodule(name)) not in stays}

    def left() -> dict[str, str]:
        norms = _norms_outside(model, ours, found) if batch_norms is None and ours else ()
        kept = [name for name, block in others.items() if name not in taken and not block.is_in_place]
        kept = kept if swapped else []
        return unasked({**found.left, **dict.fromkeys(norms, _OUTSIDE), **dict.fromkeys(kept, _SWAPPED)})

    wanted = not swapped and foreign is not False
    taken = {name: block for name, block in others.items() if (outside if block.is_in_place else wanted)}
    pairs, refused = _untouched(found.neighbors, stays), unasked(found.refused)
    return blocks, replace(found, blocks=taken, neighbors=pairs, find_left=left, refused=refused)


def _skipped(model: nn.Module, skip: Match | None) -> set[int]:
    """The ids of all modules that match, and of those inside them."""
    if skip is None:
        return set()
    wanted = matcher(skip)
    matched = [module for name, module in model.named_modules(remove_duplicate=False) if wanted(name, module)]
    if not matched:
        raise FuseError(f"skip={skip!r} matches no module of {type(model).__name__}; use names from named_modules()")
    stays = {id(inner) for module in matched for inner in module.modules()}
    whole = [module for module in model.modules() if has_form(module) and _touches(module, stays)]
    return stays.union(*(map(id, module.modules()) for module in whole))  # an inference form is all or nothing


def _touches(module: nn.Module, stays: Collection[int]) -> bool:
    return any(id(inner) in stays for inner in module.modules())


def _foreign_touches(block: ForeignBlock, stays: Collection[int]) -> bool:
    return id(block.module) in stays or any(_touches(part, stays) for part in block.gone)


def _untouched(pairs: Collection[Neighbors], stays: set[int]) -> tuple[Neighbors, ...]:
    """The pairs that share no layer with what stays, directly or through a layer that takes several norms."""
    groups = [{id(part) for part in (pair.norm, *pair.layers)} for pair in pairs]
    gone, before = set(stays), -1
    while len(gone) != before:
        before, gone = len(gone), gone.union(*(group for group in groups if group & gone))
    return tuple(pair for pair, group in zip(pairs, groups) if not group & gone)


def _norms_outside(model: nn.Module, ours: Mapping[str, Branch], found: Survey) -> Iterator[str]:
    """The dotted names of the norms outside blocks."""
    blocks = [*ours.values(), *(block.module for block in found.blocks.values())]
    inside = {id(inner) for block in blocks for inner in block.modules()}
    for name, module in model.named_modules():
        if is_any_norm(module) and id(module) not in inside:
            yield name
