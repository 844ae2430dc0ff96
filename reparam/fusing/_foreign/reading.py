"""Read a forward as linear maps of its input, step by step along its graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ...algebra._affine import after, the_input
from ...algebra._linear import LinearOp
from ...branches import Branch
from ...errors import NotLinearError, ReparamError
from ...modules._guard import why_hooked, why_replaced
from .._regions import Step, applied
from .equations import equation_of
from .functions import FUNCTIONS, METHODS, WEIGHED, pixel_unshuffle
from .layers import layer_of_torch, norm_op
from .leaves import check_inside, is_leaf, is_registered, op_of_spec, registered_op
from .trace import ForwardTracer, called, changes_in_place, is_any_norm


class Reader:
    """Reads the modules of one model, each once.

    Args:
        like: a tensor with the dtype and device for modules without parameters.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self._forwards: dict[int, Forward | NotLinearError] = {}
        self._leaves: dict[int, LinearOp | ReparamError] = {}

    def forward_of(self, module: nn.Module) -> Forward:
        """The forward of a module, with the modules that it calls as steps.

        Raises:
            NotLinearError: if its forward cannot be traced.
        """
        if id(module) not in self._forwards:
            try:
                self._forwards[id(module)] = Forward(self, module)
            except NotLinearError as error:
                self._forwards[id(module)] = error
        return _or_raise(self._forwards[id(module)])

    def apply(self, module: nn.Module, value: LinearOp) -> LinearOp:
        """Apply a module to a value.

        Raises:
            NotLinearError: if it is not linear, or its forward cannot be traced.
        """
        if why := why_replaced(module):
            raise NotLinearError(why)
        if isinstance(module, nn.PixelUnshuffle):
            return pixel_unshuffle(value, module.downscale_factor)
        if is_leaf(module):
            return after(value, self._leaf(module))
        return self.forward_of(module).apply(value)

    def call(self, module: nn.Module, names: tuple[str, ...], *values: Any) -> LinearOp:
        """Apply a module to several values, passed by keyword.

        Raises:
            NotLinearError: as in `apply`.
        """
        forward = Forward(self, module, names)
        return forward.run(
            {node: value for node in forward.inputs for name, value in zip(names, values) if node.target == name}
        )

    def cost(self, module: nn.Module) -> Fraction | None:
        """Multiply-adds of an unfused linear module per pixel of its input; None for a leaf, which reports its own."""
        if isinstance(module, nn.PixelUnshuffle):
            return Fraction(0)
        return None if is_leaf(module) else self.forward_of(module).cost()

    def _leaf(self, module: nn.Module) -> LinearOp:
        if id(module) not in self._leaves:
            try:
                self._leaves[id(module)] = _with_shift(self._read(module))
            except ReparamError as error:
                self._leaves[id(module)] = error
        return _or_raise(self._leaves[id(module)])

    def _read(self, module: nn.Module) -> LinearOp:
        if is_registered(module):
            return registered_op(module)
        if equation := equation_of(module):
            check_inside(module)
            return equation(module, self.like)
        if isinstance(module, Branch):
            return op_of_spec(module.kernel(), module.spec)
        if is_any_norm(module):
            return norm_op(module, self.like)
        return layer_of_torch(module, self.like)


def _with_shift(op: LinearOp) -> LinearOp:
    """Check whether the bias differs from zero; on the meta device, where values are unknown, assume it does not."""
    bias = op.kernel.bias
    return op._replace(shifts=op.shifts and not bias.is_meta and bool(bias.detach().any()))


def _or_raise(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found


class Forward:
    """The forward of a module as steps; the modules that it calls are read as a whole.

    Args:
        reader: reads the modules that the steps call.
        root: the module.
        given: names of arguments with a default that callers pass.
    """

    def __init__(self, reader: Reader, root: nn.Module, given: Sequence[str] = ()) -> None:
        self.reader, self.root, self._given = reader, root, given
        if why := why_replaced(root):
            raise NotLinearError(why)
        try:
            self.graph: Graph = ForwardTracer(lambda module: not why_replaced(module)).graph_of(root, given)
        except Exception as error:  # a foreign forward may raise anything
            raise NotLinearError(f"the forward of {type(root).__name__} cannot be traced: {error}") from error
        self._follow_writes()
        self._known: dict[Node, Any] = {}
        self.steps = list(self._all_steps())
        self.output = next(node for node in self.graph.nodes if node.op == "output")

    @property
    def inputs(self) -> list[Node]:
        """The arguments without a default."""
        return [node for node in self.graph.nodes if node.op == "placeholder" and node not in self._known]

    @property
    def result(self) -> Node:
        """The one value that is returned.

        Raises:
            NotLinearError: if there are several, or if it does not depend on the input.
        """
        value = self.output.args[0]
        if not isinstance(value, Node) or value in self._known:
            raise NotLinearError(f"{type(self.root).__name__} does not depend on its input, or returns several values")
        return value

    def outputs(self) -> list[Node]:
        """All values that are returned."""
        return list(self.output.all_input_nodes)

    def apply(self, value: LinearOp) -> LinearOp:
        """Apply the module to a value as its only input."""
        inputs = self.inputs
        if len(inputs) != 1:
            more = inputs[1].target if inputs else "nothing"
            raise NotLinearError(f"{type(self.root).__name__} depends on {more!r} as well, but must have one input")
        return self.run({inputs[0]: value})

    def run(self, known: dict[Any, Any]) -> LinearOp:
        """Apply the module to values of its inputs."""
        for step in self.steps:
            if step.apply is not None and all(key in known for key in step.inputs):
                known[step.key] = applied(step, known)
        if self.result not in known:
            raise NotLinearError(f"{type(self.root).__name__} does not depend on its input")
        return known[self.result]

    def cost(self) -> Fraction:
        """Multiply-adds of the unfused module per pixel of its input."""
        total = Fraction(0)
        known: dict[Any, Any] = {self.inputs[0]: the_input(torch.empty(0, device="meta"))}
        for step in self.steps:
            values = [known[key] for key in step.inputs]
            known[step.key] = value = step.apply(*values)  # type: ignore[misc]  # it is linear as a whole
            density = Fraction(1)
            for step_size in values[0].stride:
                density /= step_size
            if step.cost is not None:
                total += step.cost * density
            elif len(values) == 1:
                total += step.apply(the_input(torch.empty(0, device="meta"))).multiply_adds * density  # type: ignore[misc]
            else:
                total += value.outputs * density
        return total

    def regroup(self, source: Mapping[Any, Any]) -> None:
        """Reorder sums so that terms affine in the same value come together: a + b(y) + c(y) = a + (b(y) + c(y)).

        Args:
            source: the value that each value is affine in.
        """
        changed = False
        for node in list(self.graph.nodes):
            inner = {other for other in node.users if _summands(other)}
            if not _summands(node) or (inner and len(node.users) == 1):
                continue  # not a sum, or part of a larger one
            groups: dict[Any, list[Node]] = {}
            for leaf in _leaves(node):
                groups.setdefault(source.get(leaf, leaf), []).append(leaf)
            leaves = [leaf for group in groups.values() for leaf in group]
            others = [one for one in self.graph.nodes if one is not node and not _is_part(one)]
            written = any(self._may_write(one, leaves) for one in others)
            if len(groups) > 1 and len(leaves) > len(groups) and not written:  # as all are read where the sum ends
                self._add_in_groups(node, list(groups.values()))
                changed = True
        if changed:
            self._known = {}
            self.steps = list(self._all_steps())

    def _add_in_groups(self, node: Node, groups: list[list[Node]]) -> None:
        with self.graph.inserting_before(node):
            totals = [reduce(self._plus, group) for group in groups]
            node.replace_all_uses_with(reduce(self._plus, totals))
        waiting = [node]
        while waiting:
            gone = waiting.pop()
            waiting += [one for one in _summands(gone) if _is_part(one)]
            self.graph.erase_node(gone)

    def _plus(self, a: Node, b: Node) -> Node:
        return self.graph.call_function(operator.add, (a, b))

    def is_safe(self, piece: Any) -> bool:
        """Whether no write changes the inputs of a piece between its first step and its output."""
        nodes = list(self.graph.nodes)
        place = {node: index for index, node in enumerate(nodes)}
        read = [piece.source, *(step.key for step in piece.steps)]
        first = min(place[step.key] for step in piece.steps)
        between = nodes[first : place[piece.output]]
        return not any(node not in piece.gone and self._may_write(node, read) for node in between)

    def _may_write(self, node: Node, values: Sequence[Any]) -> bool:
        """Whether a node may write into one of these values, itself or by a module that it calls."""
        module = called(self.root, node)
        inside = module is not None and any(getattr(part, "inplace", False) for part in module.modules())
        return (inside or changes_in_place(self.root, node)) and any(one in values for one in node.all_input_nodes)

    def no_steps(self) -> list[Node]:
        """Nodes that are not steps: constants, and lists that steps take apart."""
        steps = {step.key for step in self.steps}
        return [node for node in self.graph.nodes if node not in steps and node.op not in ("placeholder", "output")]

    def has_own(self, piece: Any) -> bool:
        """Whether a piece also depends on the module's own parameters."""
        steps = {step.key for step in piece.steps}
        return any(node.op == "get_attr" and self._feeds(node, steps) for node in self.graph.nodes)

    def _feeds(self, node: Node, steps: set[Any]) -> bool:
        return any(user in steps or (user in self._known and self._feeds(user, steps)) for user in node.users)

    def computes_weight(self, node: Any) -> bool:
        """Whether the weight of a function is computed from several tensors in each forward, as in adapters."""
        weight = node.args[1] if node.op == "call_function" and node.target in WEIGHED and len(node.args) > 1 else None
        sources, waiting = set(), [weight]
        while waiting:
            one = waiting.pop()
            if isinstance(one, Node):
                sources |= {one} if one.op == "get_attr" else set()
                waiting += one.all_input_nodes
        return len(sources) > 1

    def _all_steps(self) -> Iterator[Step]:
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.args and node.target not in self._given:
                self._known[node] = node.args[0]
            elif node.op == "get_attr":
                self._known[node] = self._attribute(str(node.target))
            elif node.target is getattr and node.args[1] in ("dtype", "device"):
                self._known[node] = getattr(self.reader.like, str(node.args[1]))
            elif node.op not in ("placeholder", "output") and all(one in self._known for one in node.all_input_nodes):
                self._known[node] = self._constant(node)
            elif node.op not in ("placeholder", "output") and not self._is_taken_apart(node):
                yield self._step(node)

    def _follow_writes(self) -> None:
        """Replace in-place writes: later readers of the value read the result of the write."""
        nodes = list(self.graph.nodes)
        depends: set[Node] = set()
        self._writes = False
        for index, node in enumerate(nodes):
            if (node.op == "placeholder" and not node.args) or any(one in depends for one in node.all_input_nodes):
                depends.add(node)
            target = node.args[0] if node.args else None
            if node.target is operator.setitem and target not in depends and node not in depends:
                self._writes = True
                continue
            if node.target is operator.setitem:
                raise NotLinearError(f"{type(self.root).__name__} writes into a part of a value")
            if isinstance(target, Node) and changes_in_place(self.root, node):
                if getattr(target.target, "__name__", target.target) in _VIEWS:
                    raise NotLinearError(f"{type(self.root).__name__} writes into a part of a value")
                later = set(nodes[index + 1 :])
                target.replace_all_uses_with(node, delete_user_cb=later.__contains__)

    def _is_taken_apart(self, node: Node) -> bool:
        """Whether a node makes a list of values, which other nodes take apart."""
        return bool(node.users) and _makes_list(node) and all(_takes_apart(user) for user in node.users)

    def _step(self, node: Node) -> Step:
        inside = [one for one in node.all_input_nodes if one not in self._known and self._is_taken_apart(one)]
        inputs = [one for one in node.all_input_nodes if one not in self._known and one not in inside]
        inputs += [one for list_ in inside for one in list_.all_input_nodes if one not in self._known]
        inputs = list(dict.fromkeys(inputs))
        keys = tuple(inputs)
        module = called(self.root, node)
        if module is None:
            return Step(
                node,
                keys,
                partial(self._work_out, node, inputs),
                Fraction(0) if _costs_nothing(node) else None,
                self.computes_weight(node),
            )
        try:
            if why := why_hooked(module):
                raise NotLinearError(f"{node.target!r}: {why}")
            if len(node.kwargs) > 1 and not node.args:  # several values, or one of them twice
                names = tuple(node.kwargs)
                given: list[Any] = list(node.kwargs.values())
                places = [inputs.index(one) for one in given]
                return Step(node, keys, lambda *values: self.reader.call(module, names, *(values[i] for i in places)))
            self._check_call(node)
            return Step(node, keys, partial(self.reader.apply, module), self.reader.cost(module))
        except Exception as error:  # a foreign forward may raise anything
            return Step(node, keys, partial(_refuse, str(error)))

    def _check_call(self, node: Node) -> None:
        """Check that a module is called on a single value."""
        given = [*node.args, *node.kwargs.values()]
        if len(given) != 1 or not isinstance(given[0], Node) or given[0] in self._known:
            raise NotLinearError(f"{node.target!r} is called with more than one value")

    def _work_out(self, node: Node, inputs: list[Node], *values: LinearOp) -> Any:
        known = dict(zip(inputs, values))

        def value_of(one: Node) -> Any:
            if one in known:
                return known[one]
            return self._known[one] if one in self._known else self._work_out(one, inputs, *values)

        table: dict[Any, Any] = FUNCTIONS if node.op == "call_function" else METHODS
        if node.target not in table:
            raise NotLinearError(f"{getattr(node.target, '__name__', node.target)} is not known to be linear")
        args: Any = map_arg(node.args, value_of)
        kwargs: Any = map_arg(node.kwargs, value_of)
        made = table[node.target](*args, **kwargs)
        if not isinstance(made, LinearOp) and not _makes_list(node):
            raise NotLinearError(f"{getattr(node.target, '__name__', node.target)} does not return a value")
        return made

    def _attribute(self, target: str) -> Any:
        module, _, name = target.rpartition(".")
        value = self._cast(getattr(self.root.get_submodule(module), name))
        return value.clone() if self._writes and isinstance(value, Tensor) else value

    def _cast(self, value: Any) -> Any:
        like = self.reader.like
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(like.device, like.dtype) if is_number else value

    def _constant(self, node: Node) -> Any:
        """Compute a node whose inputs are constants, in the reader's precision."""
        args: Any = map_arg(node.args, self._known.__getitem__)
        kwargs: Any = map_arg(node.kwargs, self._known.__getitem__)
        layer = called(self.root, node)
        try:
            if layer is not None:
                tensors = {name: self._cast(value) for name, value in layer.named_parameters()}
                tensors |= {name: self._cast(value) for name, value in layer.named_buffers()}
                return functional_call(layer, tensors, args, kwargs)
            target: Any = node.target
            return target(*args, **kwargs) if callable(target) else getattr(args[0], str(target))(*args[1:], **kwargs)
        except Exception as error:  # constants may be anything
            name, what = type(self.root).__name__, getattr(node.target, "__name__", node.target)
            raise NotLinearError(f"{what} in the forward of {name} cannot be read: {error}") from error


def _summands(node: Node) -> list[Any]:
    """The terms of a node that is a plain sum."""
    name = getattr(node.target, "__name__", node.target)
    if node.op not in ("call_function", "call_method") or name not in ("add", "iadd", "add_") or node.kwargs:
        return []
    return list(node.args) if len(node.args) == 2 and all(isinstance(one, Node) for one in node.args) else []


def _is_part(node: Node) -> bool:
    """Whether a node is a sum with a single reader."""
    return bool(_summands(node)) and len(node.users) == 1


def _leaves(node: Node) -> list[Node]:
    """The terms of a nested sum; a sum that is used elsewhere counts as one term."""
    return [leaf for one in _summands(node) for leaf in (_leaves(one) if _is_part(one) else [one])]


def _refuse(why: str, *_: Any) -> LinearOp:
    raise NotLinearError(why)


_VIEWS = (
    "getitem",
    "chunk",
    "split",
    "view",
    "reshape",
    "flatten",
    "transpose",
    "permute",
    "unbind",
    "squeeze",
    "expand",
)
"""Functions that return views of a value's memory."""


def _makes_list(node: Node) -> bool:
    return node.target in ("chunk", "split", torch.chunk, torch.split, torch.stack)


def _takes_apart(node: Node) -> bool:
    return getattr(node.target, "__name__", node.target) in ("getitem", "sum", "mean")


def _costs_nothing(node: Node) -> bool:
    name = getattr(node.target, "__name__", node.target)
    return name in ("cat", "concat", "concatenate", "getitem", "reshape_as", "view_as", "contiguous", "clone", "to")
