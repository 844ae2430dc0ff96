"""Find everything to fuse in a model besides the blocks of this library."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial

from torch import nn

from .blocks import ForeignBlock, find_foreign
from .exact import shared_eval
from .neighbors import Found, find_neighbors
from .pairs import Neighbors
from .trace import is_any_norm


@dataclass(frozen=True)
class Survey:
    """Foreign blocks by dotted name, and norms that can be merged into neighboring layers."""

    blocks: Mapping[str, ForeignBlock]
    neighbors: tuple[Neighbors, ...]
    names: Mapping[int, str]
    """Dotted names by the ids of modules."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a module of a type registered with `kernel_of` stays, by dotted name."""
    find_left: Callable[[], Mapping[str, str]] = dict
    """Computes `left`, which may need a trace of the whole model."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Why a part that could be one convolution is cheaper unfused, by dotted name."""

    @cached_property
    def left(self) -> Mapping[str, str]:
        """Why a part that looks like branches, or like a norm next to a layer, is not changed, by dotted name."""
        return self.find_left()


def survey(model: nn.Module, batch_norms: bool, stays: Container[int] = ()) -> Survey:
    """Find foreign blocks and, with `batch_norms`, norms outside blocks that can be merged.

    Modules whose ids are in `stays` are left alone.
    """
    blocks, refusals, apart = find_foreign(model, stays)
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    taken = {id(module) for block in blocks.values() for part in block.gone for module in part.modules()}
    around = cache(partial(_around, model, taken))

    def left() -> dict[str, str]:
        found = around()
        kept = {names[key]: why for key, why in found.left.items() if batch_norms}
        refused = {name: refusal.why for name, refusal in refusals.items()}
        return {**refused, **kept}

    outside = any(is_any_norm(module) and id(module) not in taken for module in model.modules())
    neighbors = around().neighbors if batch_norms and outside else ()
    asked = {name: refusal.why for name, refusal in refusals.items() if refusal.asked}
    return Survey(blocks, neighbors, names, asked, left, apart)


def _around(model: nn.Module, taken: Container[int]) -> Found:
    """Examine the norms outside blocks, in a copy in eval mode."""
    shadow = shared_eval(model)
    originals = {id(twin): module for twin, module in zip(shadow.modules(), model.modules())}
    found = find_neighbors(shadow, {twin for twin, module in originals.items() if id(module) in taken})
    neighbors = tuple(
        Neighbors(originals[id(one.norm)], tuple(originals[id(layer)] for layer in one.layers), one.before)
        for one in found.neighbors
    )
    left = {id(originals[twin]): why for twin, why in found.left.items()}
    return Found(neighbors, left, tuple((originals[id(root)], graph) for root, graph in found.graphs))
