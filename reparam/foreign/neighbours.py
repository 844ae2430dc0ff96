"""Batch norms outside of blocks, and the layers next to them that can take them in.

A norm goes into the layer before it if it is all that looks at what this layer makes, or into the layers after it if
they are all that look at what the norm makes and pad nothing. This is read off the graph of the whole forward, as far
as it can be traced, so that nothing is assumed of names or of the order of registration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from ..branches import Branch
from ..norm import is_norm
from .reading import is_leaf
from .trace import called, changes_in_place, graphs, is_any_norm, is_torch_layer


@dataclass(frozen=True)
class Neighbours:
    """A norm, and the layers that take it in."""

    norm: nn.Module
    layers: tuple[nn.Module, ...]
    before: bool
    """Whether the norm runs before the layers."""


def find_neighbours(model: nn.Module, taken: Container[int]) -> Iterator[Neighbours]:
    """The norms of a model in eval mode that can be taken in.

    Args:
        model: any.
        taken: ids of modules that become something else anyway, so that they are neither norms nor layers here.
    """
    whole = list(graphs(model, lambda module: id(module) in taken or is_leaf(module)))
    calls: Counter[int] = Counter()
    for root, graph in whole:
        for node in graph.nodes:
            if (module := called(root, node)) is not None:
                calls[id(module)] += 1
            elif node.op == "get_attr":  # a parameter that is looked at past its module must stay as it is
                calls[id(root.get_submodule(str(node.target).rpartition(".")[0]))] += 2
    gone: set[int] = set()
    for root, graph in whole:
        search = _Search(root, calls, taken, gone)
        yield from search.all_in(graph)


class _Search:
    def __init__(self, root: nn.Module, calls: Counter[int], taken: Container[int], gone: set[int]) -> None:
        self.root, self.calls, self.taken, self.gone = root, calls, taken, gone

    def all_in(self, graph: Graph) -> Iterator[Neighbours]:
        for node in graph.nodes:
            norm = called(self.root, node)
            if norm is None or not self._may_go(norm):
                continue
            found = self._layer_before(node, norm) or self._layers_after(node, norm)
            if found:
                self.gone.add(id(norm))
                yield found

    def _may_go(self, norm: nn.Module) -> bool:
        usual = is_torch_layer(norm) or type(norm).__module__.startswith(("timm.", "reparam."))
        known = is_any_norm(norm) and (usual or not is_norm(norm)) and getattr(norm, "running_mean", None) is not None
        return known and self.calls[id(norm)] == 1 and id(norm) not in self.taken and not norm._forward_pre_hooks

    def _layer_before(self, node: Node, norm: nn.Module) -> Neighbours | None:
        source: Any = node.args[0]
        while isinstance(source, Node) and len(source.users) == 1 and self._does_nothing(source):
            source = source.args[0]
        if not isinstance(source, Node) or len(source.users) != 1:
            return None
        layer = called(self.root, source)
        takes = layer is not None and self._may_take(layer) and not layer._forward_hooks
        return Neighbours(norm, (layer,), before=False) if takes else None  # type: ignore[arg-type]

    def _layers_after(self, node: Node, norm: nn.Module) -> Neighbours | None:
        source = node.args[0]
        if any(not isinstance(part, nn.Identity) for part in norm.children()) or not isinstance(source, Node):
            return None
        if norm._forward_hooks or any(changes_in_place(self.root, user) for user in source.users):
            return None
        layers = [called(self.root, user) for user in self._users(node)]
        if layers and all(layer is not None and self._may_take(layer) and _pads_nothing(layer) for layer in layers):
            return Neighbours(norm, tuple(layers), before=True)  # type: ignore[arg-type]
        return None

    def _users(self, node: Node) -> Iterator[Node]:
        """What uses a value, past modules that do nothing."""
        for user in node.users:
            if self._does_nothing(user):
                yield from self._users(user)
            else:
                yield user

    def _does_nothing(self, node: Node) -> bool:
        module = called(self.root, node)
        if id(module) in self.gone and module is not None:
            return all(isinstance(part, nn.Identity) for part in module.children())
        return isinstance(module, (nn.Identity, _DropoutNd))

    def _may_take(self, layer: nn.Module) -> bool:
        plain = isinstance(layer, (_ConvNd, nn.Linear)) and is_torch_layer(layer) and "weight" in layer._parameters
        usable = (plain and id(layer) not in self.taken) or isinstance(layer, Branch)
        return usable and self.calls[id(layer)] == 1 and not layer._forward_pre_hooks


def _pads_nothing(layer: nn.Module) -> bool:
    if isinstance(layer, Branch):
        return not any(map(any, layer.spec.pads))
    if isinstance(layer, _ConvNd):
        return not isinstance(layer, _ConvTransposeNd) and layer.padding in ("valid", (0,) * len(layer.stride))
    return isinstance(layer, nn.Linear)
