"""What there is to fuse in a model, beside the blocks of this library."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial

from torch import nn

from ...bn._norm import is_norm, why_not_ready
from .blocks import ForeignBlock, Refusal, search
from .lookalikes import sums_of_layers
from .neighbours import Found, Neighbours, find_neighbours
from .recipes import Recipe
from .trace import is_any_norm, shared_eval


@dataclass(frozen=True)
class Survey:
    """Foreign blocks by dotted name, and norms that their neighbours can take in."""

    blocks: Mapping[str, ForeignBlock]
    neighbours: tuple[Neighbours, ...]
    names: Mapping[int, str]
    """Dotted names by the ids of modules."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a module stays whose type somebody registered with `kernel_of`, by dotted name."""
    find_left: Callable[[], Mapping[str, str]] = dict
    """Works `left` out, which may take a trace of the whole model."""

    @cached_property
    def left(self) -> Mapping[str, str]:
        """Why a part that looks like branches or like a norm before or after a layer stays as it is, by dotted name."""
        return self.find_left()

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
    around = cache(partial(_around, model, taken))

    def left() -> dict[str, str]:
        found = around()
        kept = {names[key]: why for key, why in found.left.items() if batch_norms}
        refused = {name: refusal.why for name, refusal in refusals.items()}
        return {**_sums_in(found, names), **refused, **kept}

    outside = any(is_any_norm(module) and id(module) not in taken for module in model.modules())
    neighbours = around().neighbours if batch_norms and outside else ()
    asked = {name: refusal.why for name, refusal in refusals.items() if refusal.asked}
    return Survey(blocks, neighbours, names, asked, left)


def _around(model: nn.Module, taken: Container[int]) -> Found:
    """What there is to know of the norms outside of blocks, looked at in a copy in eval mode."""
    shadow = shared_eval(model)
    originals = {id(twin): module for twin, module in zip(shadow.modules(), model.modules())}
    found = find_neighbours(shadow, {twin for twin, module in originals.items() if id(module) in taken})
    neighbours = tuple(
        Neighbours(originals[id(one.norm)], tuple(originals[id(layer)] for layer in one.layers), one.before)
        for one in found.neighbours
    )
    left = {id(originals[twin]): why for twin, why in found.left.items()}
    return Found(neighbours, left, tuple((originals[id(root)], graph) for root, graph in found.graphs))


_A_SUM = (
    "it adds what several linear layers make of one value, as branches do, but is of no class that is known; "
    "kernel_of.register makes its type known, if it has no activation"
)


def _sums_in(found: Found, names: Mapping[int, str]) -> dict[str, str]:
    graphs = ((root, graph) for root, graph in found.graphs if graph is not None)
    inner = ((names[id(root)], name) for root, graph in graphs for name in sums_of_layers(root, graph))
    return {f"{prefix}.{name}".strip("."): _A_SUM for prefix, name in inner}


def _taken(block: ForeignBlock) -> Iterator[nn.Module]:
    parts = [part for conv in block.values for part in block.parts(conv)]
    for part in parts if isinstance(block.recipe, Recipe) else [block.module]:
        yield from part.modules()
