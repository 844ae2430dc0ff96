"""ONNX files: regions that are one linear map of patches become one convolution, proved by running."""

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
    """A region of a graph, and the layer that it became."""

    name: str
    """Of the value that it makes."""
    before: str
    """The nodes that it had."""
    after: str
    """The layer."""
    multiply_adds: tuple[float, float]
    """Before and after, for each pixel that it reads."""
    error: float
    """The largest difference of the two, run alone, over the largest value."""


@dataclass(frozen=True)
class OnnxReport:
    """What `fuse_onnx` did; printed, it is a table."""

    regions: tuple[OnnxRegion, ...]
    nodes: tuple[int, int]
    """In the graph, before and after."""
    numbers: tuple[int, int]
    """In its initializers, before and after."""
    left: tuple[tuple[str, str], ...]
    """What stays, by the name of its value and with the reason: regions, sums that are none, and batch norms."""
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """Of the inputs that both graphs were run on."""
    error: float
    """The largest difference of the two graphs in ONNX Runtime, over the largest value of an output."""
    rounding: float
    """The same of the first graph, when its inputs change by rounding."""

    def __str__(self) -> str:
        titles = {"value": "", "nodes": "", "became": "", "multiply-adds": ",.0f", "after": ",.0f", "error": ".0e"}
        rows = [(one.name, one.before, one.after, *one.multiply_adds, one.error) for one in self.regions]
        (nodes, fewer), (numbers, less) = self.nodes, self.numbers
        return "\n".join(
            [
                table(titles, rows),
                *(f"left {name}: {why}" for name, why in self.left),
                f"{nodes:,} nodes and {numbers:,} numbers before, {fewer:,} and {less:,} after; the outputs differ by "
                f"{self.error:.0e} in ONNX Runtime ({len(self.shapes)} shapes), {self.rounding:.0e} by rounding alone",
            ]
        )


def fuse_onnx(source: Path_, target: Path_) -> OnnxReport:
    r"""Fuses the branches in an ONNX file, whoever exported it, and writes another file, proved equal.

    A region is a part of the graph that is one linear map of patches of one value,

    $$y = W * \mathrm{pad}(x) + b$$

    made of convolutions, linear layers, batch norms, average pools, padding, sums, differences, and products and
    quotients by constants, whatever is split, sliced and concatenated between them. It becomes one `Conv` (or `Gemm`,
    or `MatMul`) where that costs no more multiply-adds than what it replaces; else its parts do, where they pay. It is
    worked out in float64 and rounded once to the type of the file.

    Names of inputs and outputs, opset, metadata and all other nodes stay. What nothing needs any more goes. The new
    layer has the name of the last node of its region, its tensors that of its value with `.weight` and `.bias`.

    Each region is run alone beside its layer in ONNX Runtime, and stays if they differ. Then both graphs are run,
    on inputs of up to three sizes where sizes are free. They may differ by ten times what the type of the file rounds
    off, or what the first graph differs by when its inputs change by as much. Outputs behind a choice (`TopK`,
    `NonMaxSuppression`, `ArgMax`, ...) are not compared, as that may fall otherwise by any rounding.

    Args:
        source: a file of opset 11 or newer, with the files beside it that hold its tensors, if there are such.
        target: the file to write, and not `source`. The large tensors are in a file beside it, with `.data` at its
            end, if those of `source` are in one.

    Returns:
        What became what, what stays and why, and how far the graphs are apart.

    Raises:
        FileNotFoundError: if there is no `source`.
        SpecError: if `target` is one of the files that are read.
        CheckpointError: if `source` is no ONNX model, lacks a file beside it, or is of an older opset.
        FuseError: if there is nothing to fuse.
        ExportError: if a package is missing, ONNX Runtime does not run the file, or the graphs differ. `target` is
            touched by none of these.

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
    """The regions that are one layer, proved alone, and what stays, with the reason."""
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
            yield name, why.get(name, "no layer beside it can take it in")


def _nothing(source: Path, graph: Graph, left: list[tuple[str, str]]) -> str:
    reasons = [f"{name}: {why}" for name, why in left[:3]]
    if fed := sorted(graph.fed.intersection(tensor.name for tensor in graph.model.graph.initializer)):
        reasons = [
            f"{len(fed)} of its tensors ({fed[0]!r}, ...) are inputs too, so that other numbers may be fed; take them "
            "out of the inputs if none ever are"
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
