"""Reads what a file says about its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._coreml import about_coreml
from ._executorch import about_executorch
from ._tflite import about_tflite

KEYS = ("scale", "colors", "radius", "period", "range", "order", "reparam")
"""The keys of the note that `export` writes."""


class About(NamedTuple):
    """What a file says about its network."""

    note: dict[str, str]
    """The note of `export` or `quantize`; empty if another program wrote the file."""
    shape: tuple[int | None, ...] | None
    """The shape of the input, with None for each free size; None if the file does not say it."""


def read_note(file: Path) -> dict[str, str]:
    """Read the note that `export` stored in a file: `scale`, `colors` and the other entries, as text.

    Args:
        file: a file that `export` or `quantize` wrote. For ncnn, and for files of other programs, the note is empty.

    Returns:
        The entries by name; `export` lists them.
    """
    return about(file).note


def about(file: Path) -> About:
    """What a file says about its network: nothing, for formats that have no place for it."""
    return _READERS.get(file.suffix, lambda _: About({}, None))(file)


def told_shape(shape: Sequence[int | None]) -> str:
    """A shape for messages, with "any" for free sizes."""
    return " x ".join("any" if size is None else str(size) for size in shape)


def _of_onnx(file: Path) -> About:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return About(session.get_modelmeta().custom_metadata_map, _numbers(session.get_inputs()[0].shape))


def _of_openvino(file: Path) -> About:
    import openvino

    model = openvino.Core().read_model(file)
    held = [key for key in KEYS if model.has_rt_info(["reparam", key])]
    note = {key: model.get_rt_info(["reparam", key]).astype(str) for key in held}
    shape = model.inputs[0].get_partial_shape()
    return About(note, tuple(None if size.is_dynamic else size.get_length() for size in shape))


def _of_program(file: Path) -> About:
    import torch

    note: dict[str, Any] = dict.fromkeys(KEYS, "")
    program = torch.export.load(file, extra_files=note)
    (name,) = program.graph_signature.user_inputs
    image = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    texts = {key: text.decode() if isinstance(text, bytes) else text for key, text in note.items()}
    return About({key: text for key, text in texts.items() if text}, _numbers(image.shape))


def _of_tflite(file: Path) -> About:
    return About(*about_tflite(file))


def _of_executorch(file: Path) -> About:
    return About(*about_executorch(file))


def _of_coreml(file: Path) -> About:
    return About(*about_coreml(file))


def _numbers(shape: Any) -> tuple[int | None, ...]:
    """A shape in which names and symbols are free sizes."""
    return tuple(size if isinstance(size, int) else None for size in shape)


_READERS: dict[str, Callable[[Path], About]] = {
    ".onnx": _of_onnx,
    ".xml": _of_openvino,
    ".pt2": _of_program,
    ".tflite": _of_tflite,
    ".pte": _of_executorch,
    ".mlpackage": _of_coreml,
}
