"""Batch norms outside of blocks, and the layers next to them that can take them in.

A norm goes into the layer before it if it is all that looks at what this layer makes, or into the layers after it if
they are all that look at what the norm makes and pad nothing. This is read off the graph of the whole forward, as far
as it can be traced, so that nothing is assumed of names or of the order of registration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph

from .pairs import Neighbours, Search, is_same_conv
from .reading import is_leaf
from .source import Used, used_modules
from .trace import Leaf, called, graphs, is_any_norm


@dataclass(frozen=True)
class Found:
    """What there is to know of the norms of a model."""

    neighbours: tuple[Neighbours, ...]
    left: Mapping[int, str]
    """Why a norm stays, by its id."""
    graphs: tuple[tuple[nn.Module, Graph | None], ...]


def find_neighbours(model: nn.Module, taken: Container[int]) -> Found:
    """The norms of a model in eval mode that can be taken in, and why others cannot.

    Args:
        model: any.
        taken: ids of modules that become something else anyway, so that they are neither norms nor layers here.
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
    """Graphs of a model, and what code without a graph uses.

    What it uses is traced on its own, so that nothing reaches across its borders; so are modules with norms in them
    that are called more than once.
    """
    walls: set[int] = set()
    hidden: set[int] = set()
    while True:
        whole = tuple(graphs(model, leaf, walls, hidden))
        used = used_modules(root for root, graph in whole if graph is None)
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
    """Modules around norms that run more than once."""
    for module in model.modules():
        if any(is_any_norm(child) and calls[id(child)] > 1 for child in module.children()):
            yield module


def _count(whole: Iterable[tuple[nn.Module, Graph | None]], used: Iterable[int]) -> Counter[int]:
    """How often each module is used, by its id."""
    calls: Counter[int] = Counter(used)
    for root, graph in whole:
        for node in graph.nodes if graph else ():
            if (module := called(root, node)) is not None:
                calls[id(module)] += 1
            elif node.op == "get_attr":  # a parameter that is looked at past its module must stay as it is
                calls[id(root.get_submodule(str(node.target).rpartition(".")[0]))] += 2
    return calls


def attention_norms(model: nn.Module) -> Iterator[Neighbours]:
    """Those of timm's NextViT blocks, where heads, transposes and a mean lie between norms and linear layers."""
    for block in model.modules():
        norm, attention = block._modules.get("norm1"), block._modules.get("e_mhsa")
        q, k, v, inner = (attention._modules.get(name) if attention else None for name in ("q", "k", "v", "norm"))
        layers = [layer for layer in (q, k, v) if isinstance(layer, nn.Linear)]
        if norm is None or not is_any_norm(norm) or len(layers) < 3 or not type(block).__module__.startswith("timm."):
            continue
        if inner is not None and is_any_norm(inner):
            yield Neighbours(inner, tuple(layers[1:]), before=True)
        yield Neighbours(norm, tuple(layers), before=True)
