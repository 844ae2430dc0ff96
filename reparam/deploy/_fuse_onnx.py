"""Fuses ONNX files: regions that are one linear map of patches become one convolution, checked by running both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._tables import table
from ..algebra._linear import LinearOp
from ..errors import ExportError, FuseError, ReparamError
from ..files._writing import check_targets, written
from ..fusing._regions import Piece, find_regions

if TYPE_CHECKING:
    from ._onnx.graph import Graph
    from ._onnx.rewrite import Replacement

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class OnnxRegion:
    """A region of a graph, and the layer that replaced it."""

    name: str
    """The name of its output."""
    before: str
    """The nodes that it had."""
    after: str
    """The layer that it became."""
    multiply_adds: tuple[float, float]
    """Multiply-adds before and after, per input pixel."""
    error: float
    """The largest difference between region and layer, each run alone, relative to the largest value."""


@dataclass(frozen=True)
class OnnxReport:
    """What `fuse_onnx` did. `print` shows it as a table."""

    regions: tuple[OnnxRegion, ...]
    nodes: tuple[int, int]
    """The number of nodes in the graph, before and after."""
    numbers: tuple[int, int]
    """The number of values in its initializers, before and after."""
    left: tuple[tuple[str, str], ...]
    """What stayed, as the name of its output and the reason: regions, sums that are not regions, and batch norms."""
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """The shapes of the inputs on which both graphs were run."""
    error: float
    """The largest difference between the two graphs in ONNX Runtime, relative to the largest value of an output."""
    rounding: float
    """How much the outputs of the original graph change when its inputs change by rounding, measured the same way."""

    def __str__(self) -> str:
        titles = {"value": "", "nodes": "", "became": "", "multiply-adds": ",.0f", "after": ",.0f", "error": ".0e"}
        rows = [(one.name, one.before, one.after, *one.multiply_adds, one.error) for one in self.regions]
        (nodes, fewer), (numbers, less) = self.nodes, self.numbers
        return "\n".join(
            [
                table(titles, rows),
                *(f"left {name}: {why}" for name, why in self.left),
                f"{nodes:,} nodes and {numbers:,} values before, {fewer:,} and {less:,} after; the outputs differ by "
                f"{self.error:.0e} in ONNX Runtime ({len(self.shapes)} shapes), {self.rounding:.0e} by rounding alone",
            ]
        )


def fuse_onnx(source: Path_, target: Path_) -> OnnxReport:
    r"""Fuse the parallel branches in an ONNX file from any exporter, and write a new file that was checked to be equal.

    A region is a part of the graph that is one linear map of patches of one value,

    $$y = W * \mathrm{pad}(x) + b$$

    It may contain convolutions, linear layers, batch norms, average pools, padding, sums, differences, products with
    and quotients by constants, and any splitting, slicing and concatenation between them. It becomes one `Conv` (or
    `Gemm`, or `MatMul`) if that needs no more multiply-adds; otherwise those of its parts do for which this holds. The
    kernel is computed in float64 and rounded once to the type of the file.

    Names of inputs and outputs, opset, metadata and all other nodes stay. Nodes and tensors that are no longer used are
    removed. The new layer has the name of the last node of its region. Its tensors have the name of the region's output
    with `.weight` and `.bias` added.

    Each region runs alone next to its new layer in ONNX Runtime, and stays if they differ. Then both graphs run on
    inputs of up to three sizes, if sizes are free. They may differ by ten times the rounding of the file's type, or by
    as much as the original graph changes when its inputs change by rounding. Outputs behind a choice (`TopK`,
    `NonMaxSuppression`, `ArgMax`, ...) are not compared, because any rounding may change the choice.

    If an error is raised, `target` stays as it was.

    Args:
        source: a file of opset 11 or newer, together with any files next to it that hold its tensors.
        target: the file to write; it must not be `source`. If the tensors of `source` are in a file next to it, the
            large tensors of `target` go into one too, whose name ends in `.data`.

    Returns:
        What each region became, what stayed and why, and how much the graphs differ.

    Raises:
        FileNotFoundError: if there is no `source`.
        SpecError: if `target` is one of the files that are read.
        CheckpointError: if `source` is not an ONNX model, a file next to it is missing, or its opset is too old.
        FuseError: if there is nothing to fuse.
        ExportError: if a package is missing, ONNX Runtime cannot run the file, or the graphs differ.

    Example:
        >>> import onnx, tempfile
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
        ...     branches (float[N, 1, H, W] x) => (float[N, 1, H, W] y)
        ...     <float[1, 1, 1, 1] two = {2.0}, float[1, 1, 1, 1] three = {3.0}>
        ...     { a = Conv(x, two)  b = Conv(x, three)  y = Add(a, b) }''')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     onnx.save_model(model, f"{folder}/model.onnx")
        ...     report = fuse_onnx(f"{folder}/model.onnx", f"{folder}/fused.onnx")
        >>> report.regions[0].before, report.regions[0].after, report.error < 5e-6
        ('2 Conv, 1 Add', 'Conv 1 -> 1, 1x1', True)
    """
    source, target = Path(source), Path(target)
    if missing := [package for package in ("onnx", "onnxruntime") if not find_spec(package)]:
        raise ExportError(f"fuse_onnx needs {' and '.join(missing)}: pip install 'reparam[onnx]'")
    from ._onnx import files, rewrite, trial
    from ._onnx.graph import Graph

    check_targets([target], [source])
    model, beside = files.read(source)
    check_targets([target, *([files.data_of(target)] if beside else [])], [source, *beside])
    graph = Graph(model)
    fused, left = _found(graph)
    if not fused:
        raise FuseError(_nothing(source, graph, left))
    before = len(model.graph.node), _numbers(model)
    rewrite.rewrite(graph, [one.layer for one in fused])
    with written(target) as file:
        files.write(model, file, bool(beside), source)
        difference, shapes = trial.whole_differs(graph, source, file)
    nodes, numbers = zip(before, (len(model.graph.node), _numbers(model)))
    return OnnxReport(tuple(_row(graph, one) for one in fused), nodes, numbers, tuple(left), tuple(shapes), *difference)


class _Fused(NamedTuple):
    piece: Piece
    layer: Replacement
    error: float


def _found(graph: Graph) -> tuple[list[_Fused], list[tuple[str, str]]]:
    """The regions that become a layer, each checked alone, and what stays, with the reason."""
    from ._onnx import rewrite, steps, trial

    found, why = steps.steps_of(graph)
    fused: list[_Fused] = []
    left: list[tuple[str, str]] = []
    last = steps.handed_on(found, graph.outputs)
    regions = find_regions(found, graph.outputs, even=False)
    for piece in regions.pieces:
        output = str(piece.output)
        while output in last:
            output = last[output]
        try:
            layer = rewrite.replacement(graph, piece, output)
            fused.append(_Fused(piece, layer, trial.region_error(graph, layer)))
        except ReparamError as error:
            left.append((output, str(error)))
    left += [*regions.refused.items(), *regions.apart.items()]
    return fused, [*left, *_norms_left(graph, fused, why)]


def _norms_left(graph: Graph, fused: list[_Fused], why: dict[str, str]) -> Iterator[tuple[str, str]]:
    gone = {key for one in fused for key in one.piece.gone}
    for node in graph.nodes:
        if node.op_type == "BatchNormalization" and not gone.intersection(node.output):
            name = node.output[0]
            yield name, why.get(name, "no layer next to it can absorb it")


def _nothing(source: Path, graph: Graph, left: list[tuple[str, str]]) -> str:
    reasons = [f"{name}: {why}" for name, why in left[:3]]
    if fed := sorted(graph.fed.intersection(tensor.name for tensor in graph.model.graph.initializer)):
        reasons = [
            f"{len(fed)} of its tensors ({fed[0]!r}, ...) are also inputs, so other values may be fed for them; remove "
            "them from the inputs if that never happens"
        ]
    return "; ".join([f"nothing to fuse in {source}: no region of its {len(graph.nodes)} nodes is one layer", *reasons])


def _row(graph: Graph, one: _Fused) -> OnnxRegion:
    names = {*map(str, one.piece.gone), one.layer.output}
    before = Counter(node.op_type for node in graph.nodes if names.intersection(node.output))
    value, kind = one.layer.value, next(node.op_type for node in one.layer.nodes if node.op_type != "Pad")
    return OnnxRegion(
        one.layer.output,
        ", ".join(f"{count} {kind}" for kind, count in before.items()),
        f"{kind} {_geometry(value)}",
        (float(one.piece.before), float(one.piece.after)),
        one.error,
    )


def _geometry(value: LinearOp) -> str:
    if value.flat:
        return f"{value.inputs} -> {value.outputs}"
    if all(low == high for low, high in value.pads):
        return str(value.spec())
    return f"{str(value._replace(pads=()).spec()).partition(', padding=')[0]}, pads={value.pads}"


def _numbers(model: Any) -> int:
    return sum(prod(tensor.dims) for tensor in model.graph.initializer)
