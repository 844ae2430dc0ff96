"""Batch norms outside blocks, and the neighboring layers that they can be merged into.

A norm is merged into the layer before it if nothing else reads that layer's output. It is merged into the layers after
it if nothing else reads the norm's output and these layers do not pad. Both are read from the graph of the whole
forward, as far as it can be traced; names and the order of registration do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph

from .pairs import Neighbors, Search, is_same_conv
from .reading import is_leaf
from .source import Used, used_modules
from .trace import Leaf, called, graphs, is_any_norm


@dataclass(frozen=True)
class Found:
    """Which norms of a model can be merged, and which cannot."""

    neighbors: tuple[Neighbors, ...]
    left: Mapping[int, str]
    """Why a norm stays, by its id."""
    graphs: tuple[tuple[nn.Module, Graph | None], ...]


def find_neighbors(model: nn.Module, taken: Container[int]) -> Found:
    """Find the norms of a model in eval mode that can be merged, and why others cannot.

    Args:
        model: any model.
        taken: ids of modules that are replaced anyway, and so count neither as norms nor as layers here.
    """

    def leaf(module: nn.Module) -> bool:
        return id(module) in taken or is_same_conv(module) or is_leaf(module)

    whole, used = _look(model, leaf)
    search = Search(_count(whole, list(used.modules)), taken)
    for found in attention_norms(model):
        search.add(found)
    for root, graph in whole:
        if graph is not None:
            search.all_in(root, graph)
    for root, graph in whole:
        if graph is None:
            search.in_source(root, used)
            search.blame(root)
    return Found(tuple(search.found), search.left, whole)


def _look(model: nn.Module, leaf: Leaf) -> tuple[tuple[tuple[nn.Module, Graph | None], ...], Used]:
    """Graphs of a model, and the modules used by code that cannot be traced.

    The latter are traced separately, so no merge crosses their borders. So are modules with norms inside that are
    called more than once.
    """
    walls: set[int] = set()
    hidden: set[int] = set()
    used: Used | None = None
    while True:
        whole = tuple(graphs(model, leaf, walls, hidden))
        used = used_modules((root for root, graph in whole if graph is None), used)
        roots = {id(root) for root, _ in whole}
        often = _called_often(model, _count(whole, ()))
        new = {
            id(module) for module in [*used.modules.values(), *often] if id(module) not in roots and not leaf(module)
        }
        new -= walls
        odd = {id(root) for root, graph in whole if graph is not None and id(root) in used.otherwise} - hidden
        if not new and not odd:
            return whole, used
        walls |= new
        hidden |= odd


def _called_often(model: nn.Module, calls: Counter[int]) -> Iterator[nn.Module]:
    """Modules with norms inside that run more than once."""
    for module in model.modules():
        if any(is_any_norm(child) and calls[id(child)] > 1 for child in module.children()):
            yield module


def _count(whole: Iterable[tuple[nn.Module, Graph | None]], used: Iterable[int]) -> Counter[int]:
    """How often each module is used, by id."""
    calls: Counter[int] = Counter(used)
    for root, graph in whole:
        for node in graph.nodes if graph else ():
            if (module := called(root, node)) is not None:
                calls[id(module)] += 1
            elif node.op == "get_attr":  # a parameter that is read directly must not change
                calls[id(root.get_submodule(str(node.target).rpartition(".")[0]))] += 2
    return calls


def attention_norms(model: nn.Module) -> Iterator[Neighbors]:
    """The norms of timm's NextViT blocks, with heads, transposes and a mean between them and the linear layers."""
    for block in model.modules():
        norm, attention = block._modules.get("norm1"), block._modules.get("e_mhsa")
        q, k, v, inner = (attention._modules.get(name) if attention else None for name in ("q", "k", "v", "norm"))
        layers = [layer for layer in (q, k, v) if isinstance(layer, nn.Linear)]
        if norm is None or not is_any_norm(norm) or len(layers) < 3 or not type(block).__module__.startswith("timm."):
            continue
        if inner is not None and is_any_norm(inner):
            yield Neighbors(inner, tuple(layers[1:]), before=True)
        yield Neighbors(norm, tuple(layers), before=True)
