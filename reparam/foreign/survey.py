"""What there is to fuse in a model, beside the blocks of this library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.fx import Graph

from ..norm import is_norm, why_not_ready
from .blocks import ForeignBlock, Refusal, search
from .lookalikes import sums_of_layers
from .neighbours import Neighbours, find_neighbours
from .recipes import Recipe
from .trace import shared_eval


@dataclass(frozen=True)
class Survey:
    """Foreign blocks by dotted name, and norms that their neighbours can take in."""

    blocks: Mapping[str, ForeignBlock]
    neighbours: tuple[Neighbours, ...]
    names: Mapping[int, str]
    """Dotted names by the ids of modules."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Why a part that looks like branches or like a norm before or after a layer stays as it is, by dotted name."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Those of them that somebody asked for, as their type is registered with `kernel_of`."""

    def problems_of(self, block: ForeignBlock, conv: str) -> dict[str, str]:
        """Why a convolution of a block cannot be made now, by the dotted name of the norm."""
        return self._problems(module for part in block.parts(conv) for module in part.modules())

    def norm_problems(self) -> dict[str, str]:
        """Why a norm outside of blocks cannot be taken in now, by its dotted name."""
        return self._problems(found.norm for found in self.neighbours)

    def problems(self) -> dict[str, str]:
        """Why the model cannot be fused now, by the dotted name of the norm, or of what cannot become a layer."""
        found = {**self.refused, **self.norm_problems()}
        for block in self.blocks.values():
            for conv in block.values:
                found |= self.problems_of(block, conv)
        return found

    def _problems(self, modules: Iterator[nn.Module]) -> dict[str, str]:
        found = {self.names[id(bn)]: why_not_ready(bn) for bn in modules if is_norm(bn)}
        return {name: why for name, why in found.items() if why}


def survey(model: nn.Module, batch_norms: bool) -> Survey:
    """Looks for foreign blocks, and, if asked for, for norms outside of blocks that can be taken in."""
    looked_at = search(model)
    blocks = {name: block for name, block in looked_at.items() if isinstance(block, ForeignBlock)}
    refusals = {name: block for name, block in looked_at.items() if isinstance(block, Refusal)}
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    taken = {id(module) for block in blocks.values() for module in _taken(block)}
    shadow = shared_eval(model)
    originals = {id(twin): module for twin, module in zip(shadow.modules(), model.modules())}
    found = find_neighbours(shadow, {twin for twin, module in originals.items() if id(module) in taken})
    left: dict[str, str] = {}
    for root, graph in found.graphs:
        left |= dict.fromkeys(_sums_in(root, graph, names[id(originals[id(root)])]), _A_SUM)
    left |= {name: refusal.why for name, refusal in refusals.items()}
    neighbours = [
        Neighbours(originals[id(one.norm)], tuple(originals[id(layer)] for layer in one.layers), one.before)
        for one in found.neighbours
    ]
    if batch_norms:
        left |= {names[id(originals[twin])]: why for twin, why in found.left.items()}
    asked = {name: refusal.why for name, refusal in refusals.items() if refusal.asked}
    return Survey(blocks, tuple(neighbours) if batch_norms else (), names, left, asked)


_A_SUM = (
    "it adds what several linear layers make of one value, as branches do, but is of no class that is known; "
    "kernel_of.register makes its type known, if it has no activation"
)


def _sums_in(root: nn.Module, graph: Graph | None, prefix: str) -> Iterator[str]:
    for name in sums_of_layers(root, graph) if graph else ():
        yield f"{prefix}.{name}".strip(".")


def _taken(block: ForeignBlock) -> Iterator[nn.Module]:
    parts = [part for conv in block.values for part in block.parts(conv)]
    for part in parts if isinstance(block.recipe, Recipe) else [block.module]:
        yield from part.modules()
