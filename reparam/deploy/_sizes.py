"""The size of a network's file, and its number of operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ._tflite import operators_of_tflite


class FileSize(NamedTuple):
    """The size of a network's file."""

    name: str
    kilobytes: float
    """In units of 1000 bytes, including files that belong to it (`.bin`)."""
    operators: int
    """How many operators a program calls; constants, inputs and outputs do not count."""


def file_size(file: Path) -> FileSize:
    """The size of a file with a suffix of `FILE_ENGINES`."""
    parts = [file, *(part for part in [file.with_suffix(".bin")] if file.suffix in (".xml", ".param"))]
    return FileSize(file.name, sum(part.stat().st_size for part in parts) / 1000, _COUNTERS[file.suffix](file))


def _of_onnx(file: Path) -> int:
    import onnx

    return sum(node.op_type != "Constant" for node in onnx.load(file, load_external_data=False).graph.node)


def _of_openvino(file: Path) -> int:
    import openvino

    operations = openvino.Core().read_model(file).get_ops()
    return sum(one.get_type_name() not in ("Constant", "Parameter", "Result") for one in operations)


def _of_ncnn(file: Path) -> int:
    _, _, *layers = file.read_text().splitlines()
    return sum(not line.startswith("Input ") for line in layers if line.strip())


def _of_program(file: Path) -> int:
    import torch

    return sum(node.op == "call_function" for node in torch.export.load(file).graph.nodes)


def _of_executorch(file: Path) -> int:
    """A part that XNNPACK runs is one."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    (main,) = (one for one in deserialize_pte_binary(file.read_bytes()).program.execution_plan if one.name == "forward")
    calls = (one.instr_args for chain in main.chains for one in chain.instructions)
    return sum(type(call).__name__ in ("KernelCall", "DelegateCall") for call in calls)


_COUNTERS: dict[str, Callable[[Path], int]] = {
    ".onnx": _of_onnx,
    ".xml": _of_openvino,
    ".param": _of_ncnn,
    ".pt2": _of_program,
    ".pte": _of_executorch,
    ".tflite": operators_of_tflite,
}
