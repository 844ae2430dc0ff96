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

    def leaf(module: nn.Module) -> bool:
        return id(module) in taken or _is_same_conv(module) or is_leaf(module)

    whole = list(graphs(model, leaf))
    calls: Counter[int] = Counter()
    for root, graph in whole:
        for node in graph.nodes:
            if (module := called(root, node)) is not None:
                calls[id(module)] += 1
            elif node.op == "get_attr":  # a parameter that is looked at past its module must stay as it is
                calls[id(root.get_submodule(str(node.target).rpartition(".")[0]))] += 2
    gone: set[int] = set()
    for module in model.modules():
        for found in _attention_norms(module):
            gone.add(id(found.norm))
            yield found
    for root, graph in whole:
        yield from _Search(root, calls, taken, gone).all_in(graph)


class _Search:
    def __init__(self, root: nn.Module, calls: Counter[int], taken: Container[int], gone: set[int]) -> None:
        self.root, self.calls, self.taken, self.gone = root, calls, taken, gone

    def all_in(self, graph: Graph) -> Iterator[Neighbours]:
        """The norms in one graph, in the order in which they run."""
        for node in graph.nodes:
            norm = called(self.root, node)
            if norm is None or not self._may_go(norm):
                continue
            found = self._layer_before(node, norm) or self._layers_after(node, norm)
            if found:
                self.gone.add(id(norm))
                yield found

    def _may_go(self, norm: nn.Module) -> bool:
        if id(norm) in self.gone:
            return False
        usual = is_torch_layer(norm) or type(norm).__module__.startswith(("timm.", "reparam."))
        known = is_any_norm(norm) and (usual or not is_norm(norm)) and getattr(norm, "running_mean", None) is not None
        return known and self.calls[id(norm)] == 1 and id(norm) not in self.taken and not norm._forward_pre_hooks

    def _layer_before(self, node: Node, norm: nn.Module) -> Neighbours | None:
        source: Any = node.args[0]
        while isinstance(source, Node) and len(_readers(source)) == 1 and self._does_nothing(source):
            source = source.args[0]
        if not isinstance(source, Node) or len(_readers(source)) != 1:
            return None
        layer = called(self.root, source)
        if layer is None or not self._may_take(layer) or layer._forward_hooks:
            return None
        return Neighbours(norm, (layer,), before=False)

    def _layers_after(self, node: Node, norm: nn.Module) -> Neighbours | None:
        source = node.args[0]
        if any(not isinstance(part, nn.Identity) for part in norm.children()) or not isinstance(source, Node):
            return None
        if norm._forward_hooks or any(changes_in_place(self.root, user) for user in source.users):
            return None
        layers: list[nn.Module] = []
        for user, pooled in self._users(node):
            layer = called(self.root, user)
            if layer is None or not self._may_take(layer) or not _takes_pixels(layer, norm, pooled):
                return None
            layers.append(layer)
        return Neighbours(norm, tuple(layers), before=True) if layers else None

    def _users(self, node: Node, pooled: bool = False) -> Iterator[tuple[Node, bool]]:
        """What uses a value, past what does nothing or takes the mean over the image, and whether that was done."""
        for user in _readers(node):
            if self._does_nothing(user):
                yield from self._users(user, pooled)
            elif self._pools(user) or (pooled and _flattens(user)):
                yield from self._users(user, True)
            else:
                yield user, pooled

    def _does_nothing(self, node: Node) -> bool:
        module = called(self.root, node)
        if id(module) in self.gone and module is not None:
            return all(isinstance(part, nn.Identity) for part in module.children())
        return isinstance(module, (nn.Identity, _DropoutNd)) or (
            isinstance(module, nn.Flatten) and len(node.all_input_nodes) == 1 and self._pools(node.all_input_nodes[0])
        )

    def _pools(self, node: Node) -> bool:
        """Whether a node takes the mean over each channel, which a scale and shift may as well follow as precede."""
        if node.op == "call_method" and node.target == "mean":
            axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            return axes in ((2, 3), [2, 3], (-2, -1), [-2, -1])
        return isinstance(called(self.root, node), nn.AdaptiveAvgPool2d)

    def _may_take(self, layer: nn.Module) -> bool:
        plain = isinstance(layer, (_ConvNd, nn.Linear)) and (is_torch_layer(layer) or _is_same_conv(layer))
        usable = (plain and "weight" in layer._parameters and id(layer) not in self.taken) or isinstance(layer, Branch)
        return usable and self.calls[id(layer)] == 1 and not layer._forward_pre_hooks


def _attention_norms(block: nn.Module) -> Iterator[Neighbours]:
    """Of NextViT's block, where heads, transposes and a mean over tokens lie between norms and linear layers."""
    norm, attention = block._modules.get("norm1"), block._modules.get("e_mhsa")
    q, k, v, inner = (attention._modules.get(name) if attention else None for name in ("q", "k", "v", "norm"))
    if norm is None or not is_any_norm(norm) or not all(isinstance(layer, nn.Linear) for layer in (q, k, v)):
        return
    if inner is not None and is_any_norm(inner):
        yield Neighbours(inner, (k, v), before=True)  # type: ignore[arg-type]
    yield Neighbours(norm, (q, k, v), before=True)  # type: ignore[arg-type]


def _is_same_conv(module: nn.Module) -> bool:
    """timm's convolution that pads by the size of its input, as TensorFlow's do."""
    return isinstance(module, nn.Conv2d) and type(module).__name__ == "Conv2dSame"


def _readers(node: Node) -> list[Node]:
    """What uses the numbers of a value; its shape is not changed by a norm."""
    return [user for user in node.users if not _looks_at_shape(user)]


def _looks_at_shape(node: Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "device", "dtype")
    return node.op == "call_method" and node.target in ("size", "dim")


def _flattens(node: Node) -> bool:
    return node.op == "call_method" and node.target == "flatten" and node.args[1:] == (1,)


def _takes_pixels(layer: nn.Module, norm: nn.Module, pooled: bool) -> bool:
    """Whether a layer pads nothing, so that each of its inputs is a value that the norm made."""
    if isinstance(layer, Branch):
        return not any(map(any, layer.spec.pads))
    if isinstance(layer, nn.Linear):  # of vectors: the channels that the norm counts must be their entries
        vectors = getattr(norm, "_unfrozen_class", type(norm)) is nn.BatchNorm1d
        return (pooled or vectors) and layer.in_features == norm.num_features
    turned = isinstance(layer, _ConvTransposeNd) or _is_same_conv(layer)
    return isinstance(layer, _ConvNd) and not turned and layer.padding in ("valid", (0,) * len(layer.stride))
