"""Turns a plain network into a TFLite graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from .._plain import Dynamic, Plain, Step, with_small_sums
from . import emit_arithmetic, emit_convs, emit_sizes  # noqa: F401  # they fill the table of emitters
from .emitter import ACTIVATIONS, EMITS, Emitter
from .graph import Graph
from .order import in_order

_ACTIVATE = ("conv", "add", "multiply", "divide", "average", "largest")
"""Steps whose last operator can include an activation."""


def graph_of(plain: Plain, dynamic: Dynamic, shuffle_as_conv: bool = False) -> Graph:
    """The operators for a network, in float32.

    Args:
        plain: the network.
        dynamic: which sizes are free.
        shuffle_as_conv: whether pixel shuffles are transposed convolutions of ones and zeros.

    Raises:
        ExportError: if no operator computes a step.
    """
    plain = in_order(with_small_sums(plain))
    graph = Graph("input", "output")
    to = Emitter(graph, dynamic, shuffle_as_conv)
    names = {plain.input: to.image("input", plain.input_shape)}
    ended = _ended(plain)
    for step in plain.steps:
        if step.name in ended.values():
            continue
        clamp = next((one for one in plain.steps if ended.get(step.name) == one.name), None)
        to.step = step
        to.activation = ACTIVATIONS[clamp.settings["low"], clamp.settings["high"]] if clamp else None
        name = EMITS[step.kind](to, *(names[one] for one in step.inputs), **step.settings)
        names[clamp.name if clamp else step.name] = name
    _end(to, names[plain.output], plain.flat)
    return graph


def _ended(plain: Plain) -> dict[str, str]:
    """The names of steps that include an activation, and of the activations."""
    uses = Counter([*(name for step in plain.steps for name in step.inputs), plain.output])
    by_name: dict[str, Step] = {step.name: step for step in plain.steps}
    ended: dict[str, str] = {}
    for step in plain.steps:
        source = by_name.get(step.inputs[0])
        limits = (step.settings.get("low"), step.settings.get("high"))
        if step.kind == "clamp" and limits in ACTIVATIONS and source and source.kind in _ACTIVATE:
            ended |= {source.name: step.name} if uses[source.name] == 1 else {}
    return ended


def _end(to: Emitter, name: str, flat: bool) -> None:
    """Gives the result its name."""
    graph = to.graph
    to.step = replace(to.step, name="end", shape=to.shape(name))
    if flat:
        batch, channels, *_ = to.shape(name)
        name = to.operator("RESHAPE", name, to.constant([-1, channels], "int32"), newShape=[-1, channels])
        graph.arrays[name] = replace(graph.arrays[name], shape=(batch, channels))
    elif name == graph.input:  # nothing is computed
        name = to.operator("ADD", name, to.constant(0.0))
    graph.arrays[graph.output] = graph.arrays.pop(name)
    renamed = {name: graph.output}
    graph.operators = [
        replace(one, inputs=tuple(renamed.get(x, x) for x in one.inputs), output=renamed.get(one.output, one.output))
        for one in graph.operators
    ]
