"""What a forward is as affine functions of its input, read off its graph node by node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.fx.node import map_arg

from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...algebra._spec import ConvSpec
from ...branches import Branch
from ...errors import NotLinearError, ReparamError, SpecError
from ...modules._guard import why_hooked, why_replaced
from .affine import Affine, after, the_input
from .equations import equation_of
from .layers import FUNCTIONS, METHODS, layer_affine, norm_affine
from .trace import ForwardTracer, called, changes_in_place, is_any_norm, is_torch_layer

_GEOMETRY = ("stride", "padding", "dilation", "groups")


@singledispatch
def registered_kernel(module: nn.Module) -> Kernel:
    """The kernel of a type that somebody registered; see `kernel_of`."""
    raise NotLinearError(f"{type(module).__name__} is not registered with kernel_of")


def is_registered(module: nn.Module) -> bool:
    """Whether somebody registered a kernel for this type."""
    return registered_kernel.dispatch(type(module)) is not _NOT_REGISTERED


_NOT_REGISTERED = registered_kernel.dispatch(object)


def like_of(module: nn.Module) -> Tensor:
    """A floating point tensor of a module, for its dtype and device."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            return tensor
    raise NotLinearError(f"{type(module).__name__} has no parameters, so that there is nothing to fuse")


def affine_of(module: nn.Module, like: Tensor) -> Affine:
    """What a module does to its input.

    Raises:
        NotLinearError: if it is not affine, or its forward cannot be traced.
    """
    if why := why_replaced(module):
        raise NotLinearError(why)
    if is_registered(module):
        return _registered(module)
    if equation := equation_of(module):
        check_inside(module)
        return equation(module, like)
    if isinstance(module, Branch):
        return _of_spec(module.kernel(), module.spec)
    if is_any_norm(module):
        return norm_affine(module, like)
    if is_torch_layer(module):
        return layer_affine(module, like)
    return Reading(module, like).output()


def check_inside(module: nn.Module) -> None:
    """Checks that what is in a module runs as its class says, where it is read by name.

    Raises:
        NotLinearError: if a module inside has hooks or another forward; it is named.
    """
    for name, inner in module.named_modules():
        if why := (why_hooked(inner) if name else None) or why_replaced(inner):
            raise NotLinearError(f"{name!r}: {why}")


def _registered(module: Any) -> Affine:
    kernel = Kernel(*registered_kernel(module))
    if isinstance(getattr(module, "spec", None), ConvSpec):
        return _of_spec(kernel, module.spec)
    missing = [name for name in _GEOMETRY if not hasattr(module, name)]
    if missing:
        raise SpecError(
            f"{type(module).__name__} is registered with kernel_of, but has no {', '.join(missing)}; give it these "
            "attributes, as nn.Conv2d has them, or a `spec`, a ConvSpec"
        )
    stride, padding, dilation, groups = (getattr(module, name) for name in _GEOMETRY)
    out, inputs, *size = kernel.weight.shape
    mode = getattr(module, "padding_mode", "zeros")
    spec = ConvSpec(inputs * groups, out, size, stride, padding, dilation, groups, True, mode, ndim=len(size))
    return _of_spec(kernel, spec)


def _of_spec(kernel: Kernel, spec: ConvSpec) -> Affine:
    return Affine(LinearOp(kernel, spec.stride, spec.dilation, spec.groups), spec.pads, spec.padding_mode)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is looked at as a whole."""
    whole = is_any_norm(module) or is_torch_layer(module) or equation_of(module) is not None
    return whole or is_registered(module) or isinstance(module, Branch)


class Reading:
    """The forward of a module, read node by node, as affine functions of its input or of a value inside.

    Args:
        root: the module.
        like: gives dtype and device to what has no parameters.
        keep: names of modules in it that are not looked into.
    """

    def __init__(self, root: nn.Module, like: Tensor, keep: Sequence[str] = ()) -> None:
        self.root, self.like = root, like
        kept = [root.get_submodule(name) for name in keep]
        try:
            self.graph = ForwardTracer(lambda module: is_leaf(module) or module in kept).graph_of(root)
        except Exception as error:  # a foreign forward may raise anything
            raise NotLinearError(f"the forward of {type(root).__name__} cannot be traced: {error}") from error
        self.take()

    def take(self, source: str | None = None) -> Reading:
        """Takes as the input what a module in it returns, or, without a name, the input of all."""
        self._known: dict[Node, Any] = {}
        self._source = self._call(source) if source else next(iter(self.graph.nodes))
        return self

    def output(self) -> Affine:
        """The value that the module returns."""
        return self._affine(next(node for node in self.graph.nodes if node.op == "output").args[0])

    def into(self, name: str | None) -> Affine:
        """The value that the module of this name is called on; without a name, the value that is returned."""
        return self._affine(self._call(name).args[0]) if name else self.output()

    def _call(self, name: str) -> Node:
        nodes = [node for node in self.graph.nodes if node.op == "call_module" and node.target == name]
        if len(nodes) != 1:
            raise NotLinearError(f"{type(self.root).__name__} calls {name!r} {len(nodes)} times, not once")
        return nodes[0]

    def _affine(self, node: Any) -> Affine:
        value = self._value(node) if isinstance(node, Node) else node
        if not isinstance(value, Affine):
            raise NotLinearError(f"{type(self.root).__name__} does not depend on its input")
        return value

    def _value(self, node: Node) -> Any:
        if node not in self._known:
            try:
                self._known[node] = self._work_out(node)
            except ReparamError:
                raise
            except Exception as error:  # whatever is done to a value that is not known to be done to values
                name, what = type(self.root).__name__, getattr(node.target, "__name__", node.target)
                raise NotLinearError(f"{what} in the forward of {name} cannot be read: {error}") from error
        return self._known[node]

    def _check_in_place(self, node: Node) -> None:
        """What is overwritten must not be looked at afterwards."""
        nodes = list(self.graph.nodes)
        if changes_in_place(self.root, node) and isinstance(node.args[0], Node):
            later = nodes[nodes.index(node) + 1 :]
            if any(user in later for user in node.args[0].users):
                raise NotLinearError(f"{type(self.root).__name__} overwrites a value and uses it afterwards")

    def _work_out(self, node: Node) -> Any:
        if node is self._source:
            return the_input(self.like)
        if node.op in ("placeholder", "get_attr"):
            return self._given(node)
        self._check_in_place(node)
        args: Any = map_arg(node.args, self._value)
        kwargs: Any = map_arg(node.kwargs, self._value)
        depends = any(isinstance(self._value(source), Affine) for source in node.all_input_nodes)
        layer, target = called(self.root, node), node.target
        if depends and layer is not None and (why := why_hooked(layer)):
            raise NotLinearError(f"{node.target!r}: {why}")
        if layer is not None:
            return after(args[0], affine_of(layer, self.like)) if depends else self._run(layer, args, kwargs)
        table: dict[Any, Any] = FUNCTIONS if node.op == "call_function" else METHODS
        if depends and target not in table:
            raise NotLinearError(f"{getattr(target, '__name__', target)} is not known to be linear")
        if depends:
            return table[target](*args, **kwargs)
        return target(*args, **kwargs) if callable(target) else getattr(args[0], str(target))(*args[1:], **kwargs)

    def _given(self, node: Node) -> Any:
        """A default argument, or what stands in an attribute."""
        if node.op == "placeholder":
            if not node.args:
                raise NotLinearError(f"{type(self.root).__name__} depends on {node.target!r} as well")
            return node.args[0]
        module, _, name = str(node.target).rpartition(".")
        value = getattr(self.root.get_submodule(module), name)
        return value.to(self.like.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _run(self, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        """What a module makes of numbers, in the precision of all others."""
        tensors = {name: value.to(self.like.dtype) for name, value in layer.named_parameters()}
        return functional_call(layer, tensors, args, kwargs)
