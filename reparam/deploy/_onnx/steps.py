"""The nodes of an ONNX graph as steps, in which regions are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

from onnx import NodeProto, TensorProto

from ...errors import NotLinearError, ReparamError
from ...fusing._regions import Step
from . import arithmetic, channels, rings  # noqa: F401  # which register what they read
from .call import Call, Read
from .channels import parts_of
from .graph import Graph, read_by
from .layers import READERS, as_it_is

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_MOVES = {
    "Identity",
    "Dropout",
    "Pad",
    "Concat",
    "Split",
    "SequenceAt",
    "Slice",
    "Gather",
    "Transpose",
    "Where",
    "Cast",
    "CastLike",
}
"""What computes nothing."""
_COPIES = {"Constant", "Identity", "Cast", "CastLike", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}
"""What makes a weight of another one, the same numbers in it."""


def steps_of(graph: Graph) -> tuple[list[Step], dict[str, str]]:
    """The steps that lead to the outputs of a graph, and, by the name of their value, why some are not linear maps.

    A value that is the same for all inputs is not a step.
    """
    why: dict[str, str] = {}
    steps = [step for node in graph.nodes for step in _steps(graph, node, why)]
    needed = {value.name for value in graph.model.graph.output}
    found = []
    for step in reversed(steps):
        if step.key in needed:
            needed.update(map(str, step.inputs))
            found.append(step)
    return found[::-1], why


def handed_on(steps: list[Step], outputs: set[str]) -> dict[str, str]:
    """The values whose only reader is a step that does nothing (a dropout, an identity), and that step's output."""
    readers = Counter(name for step in steps for name in step.inputs)
    only = [step for step in steps if step.apply is as_it_is and readers[step.inputs[0]] == 1]
    return {str(step.inputs[0]): str(step.key) for step in only if step.inputs[0] not in outputs}


def _steps(graph: Graph, node: NodeProto, why: dict[str, str]) -> Iterator[Step]:
    outputs = [name for name in node.output if name and name not in graph.constants]
    linear: dict[str, Read] = {}
    try:
        linear = _linear(graph, node)
    except NotLinearError as error:
        why |= dict.fromkeys(outputs, str(error))
    except (ReparamError, ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
        why |= dict.fromkeys(outputs, f"{node.op_type} cannot be read: {error!r}")  # a malformed node
    others = tuple(sorted(name for name in read_by(node) if name not in graph.constants))
    cost = Fraction(0) if node.op_type in _MOVES else None
    for name in outputs:
        inputs, apply = linear.get(name, (others, None))
        yield Step(name, inputs, apply, cost, _computes(graph, node))


def _computes(graph: Graph, node: NodeProto) -> bool:
    """Whether other nodes compute the weight of a layer each time the graph runs."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    maker = graph.makers.get(node.input[1])
    while maker is not None and maker.op_type in _COPIES:
        maker = graph.makers.get(maker.input[0]) if maker.input else None
    return maker is not None


def _linear(graph: Graph, node: NodeProto) -> dict[str, Read]:
    if node.domain not in ("", "ai.onnx") or graph.type_of(node.output[0]) not in FLOATS:
        return {}
    call = Call(graph, node)
    if node.op_type == "Split":
        return dict(parts_of(call))
    reader = READERS.get(node.op_type)
    return {} if reader is None else {node.output[0]: reader(call)}
