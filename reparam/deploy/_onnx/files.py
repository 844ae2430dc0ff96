"""Reads and writes ONNX files, with the files next to them that hold tensors."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import ModelProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ...errors import CheckpointError, ExportError

_OLDEST = 11
"""The oldest opset that is read; before it, the settings of pads and slices were attributes with other names."""


def read(path: Path) -> tuple[ModelProto, list[Path]]:
    """A model with all of its tensors, and the files next to it that hold some of them.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is not an ONNX model, has an opset that is not read, or lacks a file next to it.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf has its own exceptions
        raise CheckpointError(f"cannot read {path}: it is not an ONNX model ({error})") from error
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if not model.HasField("graph") or not opset:
        raise CheckpointError(f"cannot read {path}: it is not an ONNX model, or has no operations of ONNX")
    if not _OLDEST <= opset <= onnx.defs.onnx_opset_version():
        raise CheckpointError(
            f"{path} has opset {opset}, but only {_OLDEST} to {onnx.defs.onnx_opset_version()} can be read with the "
            "installed onnx; convert it with onnx.version_converter"
        )
    beside = _files_beside(model, path.parent)
    try:
        onnx.load_external_data_for_model(model, os.fspath(path.parent))
    except Exception as error:  # onnx raises several kinds
        raise CheckpointError(f"cannot read {path}: the file with its tensors, {beside[0]}: {error}") from error
    return model, beside


def _files_beside(model: ModelProto, folder: Path) -> list[Path]:
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return sorted({folder / ExternalDataInfo(tensor).location for tensor in tensors})


def data_of(path: Path) -> Path:
    """The file next to an ONNX file that holds its tensors."""
    return path.with_name(path.name + ".data")


def write(model: ModelProto, path: Path, beside: bool, source: Path) -> None:
    """Write a model, with its large tensors in a file next to it if `beside`, and run onnx's checker.

    Raises:
        ExportError: if the model fails the check, but the source passes it.
    """
    onnx.save_model(model, path, save_as_external_data=beside, location=data_of(path).name)
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as error:
        if _is_valid(source):
            raise ExportError(f"the fused graph of {source} is not a valid ONNX model: {error}") from error


def _is_valid(path: Path) -> bool:
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError:
        return False
    return True
