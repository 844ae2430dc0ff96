"""Decide whether a batch norm can be merged into the layers next to it in a graph, and if not, why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from ...bn._frozen import kind_before
from ...bn._norm import is_norm
from ...branches import Branch
from ...errors import NotLinearError
from .layers import norm_scale_shift
from .source import Used, handed_on
from .trace import called, changes_in_place, is_any_norm, is_torch_layer
from .turned import axes_of, turned_axes


@dataclass(frozen=True)
class Neighbors:
    """A norm, and the layers that it is merged into."""

    norm: nn.Module
    layers: tuple[nn.Module, ...]
    before: bool
    """Whether the norm runs before the layers."""


class Search:
    """Search one graph after the other; a norm that can be merged counts as gone from then on."""

    root: nn.Module

    def __init__(self, calls: Counter[int], taken: Container[int]) -> None:
        self.calls, self.taken = calls, taken
        self.gone: set[int] = set()
        self.found: list[Neighbors] = []
        self.left: dict[int, str] = {}

    def add(self, found: Neighbors) -> None:
        """Count a norm as gone."""
        self.gone.add(id(found.norm))
        self.found.append(found)

    def all_in(self, root: nn.Module, graph: Graph) -> None:
        """Search the norms in one graph, in the order in which they run."""
        self.root = root
        for node in graph.nodes:
            norm = called(root, node)
            if norm is None or not is_any_norm(norm) or id(norm) in self.gone or id(norm) in self.taken:
                continue
            why = self._why_it_stays(norm, node)
            before = why or self._layer_before(node, norm)
            after = why or (self._layers_after(node, norm) if isinstance(before, str) else before)
            if not isinstance(after, str):
                self.add(after)
            else:
                self.left[id(norm)] = why or f"{before}; {after}"

    def in_source(self, root: nn.Module, used: Used) -> None:
        """Search the norms that follow a layer in a forward of which only the source can be read."""
        self.root = root
        for layer, norm in handed_on(root, used, self._passes):
            if (
                not _is_layer(layer)
                or not is_any_norm(norm)
                or {id(norm), id(layer)} & self.gone
                or id(norm) in self.taken
            ):
                continue
            why = self._why_norm_stays(norm) or self._why_not(layer, layer._forward_hooks)
            if why or not _makes_channels(layer, norm):
                self.left[id(norm)] = why or "the layer before it makes other channels than it normalizes"
            else:
                self.add(Neighbors(norm, (layer,), before=False))

    def blame(self, root: nn.Module) -> None:
        """Record why norms outside every graph stay, with the module around them."""
        for norm in filter(is_any_norm, root.children()):
            why = f"the forward of {_kind(root)} around it cannot be traced, so it is not known what runs next to it"
            if id(norm) not in self.gone:
                self.left.setdefault(id(norm), why)

    def _why_it_stays(self, norm: Any, node: Node) -> str:
        if len(node.args) != 1 or node.kwargs:
            return "it is called with more than one input, or by keyword"
        return self._why_norm_stays(norm)

    def _why_norm_stays(self, norm: Any) -> str:
        usual = is_torch_layer(norm) or type(norm).__module__.startswith(("timm.", "reparam."))
        if is_norm(norm) and not usual:
            return f"{_kind(norm)} has a forward of its own"
        if norm.running_mean is None:
            return "it keeps no running statistics (track_running_stats=False)"
        if self.calls[id(norm)] != 1:
            return "it is used more than once, or by code that cannot be traced"
        if norm._forward_pre_hooks:
            return "it has a forward pre-hook, which sees its input"
        try:
            norm_scale_shift(norm)  # another library's frozen norm may compute something else
        except NotLinearError as error:
            return str(error)
        return ""

    def _layer_before(self, node: Node, norm: nn.Module) -> Neighbors | str:
        source: Any = node.args[0]
        turned = None  # the axis that becomes the channel axis
        while isinstance(source, Node) and len(_readers(source)) == 1:
            axes = turned_axes(source, norm)
            if axes is None and not self._does_nothing(source):
                break
            source, turned = source.args[0], turned if axes is None else axes[turned or 1]
        if not isinstance(source, Node):
            return "nothing runs before it"
        layer = called(self.root, source)
        if layer is None or not _is_layer(layer):
            return f"it follows {self._words(source)}, not a layer that it can be merged into"
        if len(_readers(source)) != 1:
            return f"the layer before it, {self._words(source)}, is also used without it"
        why = self._why_not(layer, layer._forward_hooks)
        if why or not _makes_channels(layer, norm, turned):
            return f"the layer before it, {self._words(source)}, {why or 'makes other channels than it normalizes'}"
        return Neighbors(norm, (layer,), before=False)

    def _layers_after(self, node: Node, norm: nn.Module) -> Neighbors | str:
        source = node.args[0]
        if any(not isinstance(part, nn.Identity) for part in norm.children()):
            return "its own activation runs before the next layer"
        if norm._forward_hooks:
            return "it has a forward hook, which sees its output"
        if not isinstance(source, Node) or any(changes_in_place(self.root, user) for user in source.users):
            return "its input is overwritten in place"
        layers: list[nn.Module] = []
        for user, pooled in self._users(node):
            layer = called(self.root, user)
            if layer is None or not _is_layer(layer):
                return f"it is followed by {self._words(user)}, not a layer that it can be merged into"
            why = self._why_not(layer, None) or _why_no_pixels(layer, norm, pooled)
            if why:
                return f"the layer after it, {self._words(user)}, {why}"
            layers.append(layer)
        return Neighbors(norm, tuple(layers), before=True) if layers else "nothing follows it"

    def _why_not(self, layer: nn.Module, hooks: Any) -> str:
        """Why a norm cannot be merged into a layer; empty if it can."""
        if id(layer) in self.taken:
            return "is replaced by another layer anyway"
        if self.calls[id(layer)] != 1:
            return "is also used without it, or its weight is, or code that cannot be traced uses it"
        if layer._forward_pre_hooks or hooks:
            return "has a hook, which sees the value between the two"
        plain = is_torch_layer(layer) or is_same_conv(layer)
        if not isinstance(layer, Branch) and not (plain and "weight" in layer._parameters):
            return "is not a layer of torch, or computes its weight"
        return ""

    def _words(self, node: Node) -> str:
        module = called(self.root, node)
        if module is not None:
            return f"{type(module).__name__} {node.target!r}"
        known = {"placeholder": "the input", "output": "the output", "get_attr": "a parameter"}
        return known.get(node.op, str(getattr(node.target, "__name__", node.target)))

    def _users(self, node: Node, pooled: bool = False) -> Iterator[tuple[Node, bool]]:
        """The users of a value, past nodes that do nothing or average over the image, and whether they average."""
        for user in _readers(node):
            if self._does_nothing(user):
                yield from self._users(user, pooled)
            elif self._pools(user) or (pooled and _flattens(user)):
                yield from self._users(user, True)
            else:
                yield user, pooled

    def _does_nothing(self, node: Node) -> bool:
        module = called(self.root, node)
        of_pixels = isinstance(module, nn.Flatten) and any(map(self._pools, node.all_input_nodes))
        return module is not None and (self._passes(module) or (of_pixels and _is_unhooked(module)))

    def _passes(self, module: nn.Module) -> bool:
        """Whether a module returns its input unchanged."""
        if not _is_unhooked(module):
            return False
        if id(module) in self.gone:
            return all(isinstance(part, nn.Identity) for part in module.children())
        return is_torch_layer(module) and isinstance(module, (nn.Identity, _DropoutNd))

    def _pools(self, node: Node) -> bool:
        """Whether a node averages over each channel; a scale and shift can be before or after that."""
        if node.op == "call_method" and node.target == "mean":
            axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            return axes in ((2, 3), [2, 3], (-2, -1), [-2, -1])
        pool = called(self.root, node)
        return isinstance(pool, nn.AdaptiveAvgPool2d) and is_torch_layer(pool) and not pool._forward_hooks


def _is_unhooked(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear, Branch))


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def is_same_conv(module: nn.Module) -> bool:
    """Whether it is timm's convolution whose padding depends on the input size, as in TensorFlow."""
    return isinstance(module, nn.Conv2d) and type(module).__name__ == "Conv2dSame"


def _readers(node: Node) -> list[Node]:
    """The nodes that use the values of a node; a norm does not change shapes."""
    return [user for user in node.users if not _looks_at_shape(user)]


def _looks_at_shape(node: Node) -> bool:
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "device", "dtype")
    return node.op == "call_method" and node.target in ("size", "dim")


def _flattens(node: Node) -> bool:
    return node.op == "call_method" and node.target == "flatten" and node.args[1:] == (1,)


def _makes_channels(layer: nn.Module, norm: Any, turned: int | None = None) -> bool:
    """Whether the channels of a norm are those of a layer; on images from a linear layer they are another axis."""
    if not isinstance(layer, nn.Linear):
        return turned in (None, 1)
    last = _is_of_vectors(norm) if turned is None else turned == axes_of(norm) - 1
    return last and layer.out_features == norm.num_features


def _is_of_vectors(norm: nn.Module) -> bool:
    return kind_before(norm) in (nn.BatchNorm1d, nn.SyncBatchNorm)


def _why_no_pixels(layer: nn.Module, norm: nn.Module, pooled: bool) -> str:
    """Why some inputs of a layer are not values from the norm; empty if all are."""
    if isinstance(layer, nn.Linear):  # the norm's channels must be the entries of its vectors
        fits = (pooled or _is_of_vectors(norm)) and layer.in_features == norm.num_features
        return "" if fits else "does not act on the channels that it normalizes"
    if isinstance(layer, _ConvTransposeNd):
        return "is transposed and inserts zeros between pixels"
    pads = layer.spec.pads if isinstance(layer, Branch) else _pads_of(layer)
    return "pads its input" if any(map(any, pads)) or is_same_conv(layer) else ""


def _pads_of(layer: Any) -> Iterable[tuple[int, ...]]:
    return [(0,)] if layer.padding == "valid" else [(1,)] if layer.padding == "same" else [layer.padding]
