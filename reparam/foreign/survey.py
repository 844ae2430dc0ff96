"""What there is to fuse in a model, beside the blocks of this library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..norm import is_norm, why_not_ready
from .blocks import ForeignBlock, find_foreign
from .neighbours import Neighbours, find_neighbours
from .recipes import Recipe
from .trace import is_any_norm, shared_eval


@dataclass(frozen=True)
class Survey:
    """Foreign blocks by dotted name, and norms that their neighbours can take in."""

    blocks: Mapping[str, ForeignBlock]
    neighbours: tuple[Neighbours, ...]
    names: Mapping[int, str]
    """Dotted names by the ids of modules."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Why a part that looks like branches or like a norm before or after a layer stays as it is, by dotted name."""

    def problems_of(self, block: ForeignBlock, conv: str) -> dict[str, str]:
        """Why a convolution of a block cannot be made now, by the dotted name of the norm."""
        return self._problems(module for part in block.parts(conv) for module in part.modules())

    def norm_problems(self) -> dict[str, str]:
        """Why a norm outside of blocks cannot be taken in now, by its dotted name."""
        return self._problems(found.norm for found in self.neighbours)

    def problems(self) -> dict[str, str]:
        """Why the model cannot be fused now, by the dotted name of the norm."""
        found = self.norm_problems()
        for block in self.blocks.values():
            for conv in block.values:
                found |= self.problems_of(block, conv)
        return found

    def _problems(self, modules: Iterator[nn.Module]) -> dict[str, str]:
        found = {self.names[id(bn)]: why_not_ready(bn) for bn in modules if is_norm(bn)}
        return {name: why for name, why in found.items() if why}


def survey(model: nn.Module, batch_norms: bool) -> Survey:
    """Looks for foreign blocks, and, if asked for, for norms outside of blocks that can be taken in."""
    blocks = find_foreign(model)
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    taken = {id(module) for block in blocks.values() for module in _taken(block)}
    outside = any(is_any_norm(module) and id(module) not in taken for module in model.modules())
    if not batch_norms or not outside:
        return Survey(blocks, (), names)
    shadow = shared_eval(model)
    originals = {id(twin): module for twin, module in zip(shadow.modules(), model.modules())}
    twins = {twin for twin, module in originals.items() if id(module) in taken}
    neighbours = tuple(
        Neighbours(originals[id(found.norm)], tuple(originals[id(layer)] for layer in found.layers), found.before)
        for found in find_neighbours(shadow, twins)
    )
    return Survey(blocks, neighbours, names)


def _taken(block: ForeignBlock) -> Iterator[nn.Module]:
    parts = [part for conv in block.values for part in block.parts(conv)]
    for part in parts if isinstance(block.recipe, Recipe) else [block.module]:
        yield from part.modules()
