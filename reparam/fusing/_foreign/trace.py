"""Trace a forward to a graph with torch.fx, with torch's own layers as leaves."""

from __future__ import annotations

import inspect
import operator
from collections import deque
from collections.abc import Callable, Container, Iterator
from typing import Any

from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from ...bn._norm import is_norm
from ...errors import NotLinearError
from ...modules._guard import why_hooked, why_replaced
from ...modules._hooks import that_matter

Leaf = Callable[[nn.Module], bool]


class _Value(Proxy):
    """A traced value that a forward may write into."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class ForwardTracer(Tracer):
    """Traces into every module except the leaves, and knows in which module a trace failed."""

    def __init__(self, is_leaf: Leaf) -> None:
        super().__init__()
        self._is_leaf = is_leaf
        self.failed_in: nn.Module | None = None

    def graph_of(self, module: nn.Module, given: Container[str] = ()) -> Graph:
        """Trace a forward; arguments with a default keep it, unless they are in `given`.

        Raises:
            Exception: whatever the forward raises on traced values.
        """
        parameters = inspect.signature(module.forward).parameters.items()
        defaults = {name: one.default for name, one in parameters if one.default is not one.empty and name not in given}
        return self.trace(module, concrete_args=defaults)

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Treat `*args` and `**kwargs` as empty."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        none: dict[int, Any] = {1: (), 2: {}}
        for index, proxy in enumerate(args):
            node = getattr(proxy, "node", None)
            if node is not None and str(node.target).startswith("*"):
                args[index] = none[str(node.target).count("*")]
                self.graph.erase_node(node)
        return function, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if not self._is_leaf(m) and (why := why_hooked(m)):
            raise NotLinearError(why)
        try:  # without hooks, which must not run in a trace
            return super().call_module(m, m.forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or m
            raise


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a norm of torchvision, detectron2, timm or DETR with a frozen affine, which is no `_BatchNorm`."""
    names = ("weight", "bias", "running_mean", "running_var")
    return "FrozenBatchNorm" in type(module).__name__ and all(
        name in module._buffers or name in module._parameters for name in names
    )


def is_any_norm(module: nn.Module) -> bool:
    """Whether it normalizes with running statistics per channel: see `is_norm` and `is_frozen_norm`."""
    return (is_norm(module) or is_frozen_norm(module)) and not why_replaced(module)


def is_torch_layer(module: nn.Module) -> bool:
    """Whether it runs a forward of `torch.nn`, and is not only a container of modules.

    A layer of `torch.ao` that quantizes its weight first does not count: its weight is not what runs.
    """
    forward = type(module).forward
    holder = forward in (nn.Sequential.forward, nn.Module.forward)  # lists and dicts of modules have no forward
    if holder or why_replaced(module):
        return False
    return (getattr(forward, "__module__", None) or "").startswith("torch.nn.modules.")


def graphs(
    model: nn.Module, is_leaf: Leaf, walls: Container[int] = (), hidden: Container[int] = ()
) -> Iterator[tuple[nn.Module, Graph | None]]:
    """Trace as much of a model as possible, in several graphs, each with the module whose forward it is.

    A forward that looks at values or shapes cannot be traced: it has None instead of a graph, and the modules inside
    are traced separately. So are modules with forward hooks, since these see inputs and outputs.

    Args:
        model: any model.
        is_leaf: whether a module is read as a whole.
        walls: ids of further modules to trace separately.
        hidden: ids of modules whose graph would differ from what runs.
    """

    def closed(module: nn.Module) -> bool:
        return id(module) in walls or bool(that_matter(module._forward_hooks, module._forward_pre_hooks))

    seen: set[int] = set()
    waiting = deque([model])
    while waiting:
        root = waiting.popleft()
        if id(root) in seen or is_leaf(root):
            continue
        seen.add(id(root))
        graph, alone = (None, closed) if id(root) in hidden else _trace_past(root, is_leaf, closed)
        yield root, graph
        waiting.extendleft(reversed(list(root.children() if graph is None else _outermost(root, alone, is_leaf))))


def _trace_past(root: nn.Module, is_leaf: Leaf, closed: Leaf) -> tuple[Graph | None, Leaf]:
    """The graph of a module with untraceable parts as leaves, and a predicate for these parts."""
    opaque: set[type] = set()

    def alone(module: nn.Module) -> bool:
        return type(module) in opaque or closed(module)

    while True:
        tracer = ForwardTracer(lambda module: alone(module) or is_leaf(module))
        try:
            return tracer.graph_of(root), alone
        except Exception:  # a foreign forward may raise anything
            if tracer.failed_in is None or type(tracer.failed_in) in opaque:
                return None, alone
            opaque.add(type(tracer.failed_in))


def _outermost(module: nn.Module, which: Leaf, is_leaf: Leaf) -> Iterator[nn.Module]:
    for child in module.children():
        if which(child):
            yield child
        elif not is_leaf(child):
            yield from _outermost(child, which, is_leaf)


def called(root: nn.Module, node: Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


_IN_PLACE = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv)


def changes_in_place(root: nn.Module, node: Node) -> bool:
    """Whether a node writes into its first argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_function":
        return node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))
    return bool(getattr(called(root, node), "inplace", False))
