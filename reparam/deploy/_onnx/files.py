"""ONNX files, read and written with the tensors that lie beside them."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import ModelProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ...errors import CheckpointError, ExportError

_OLDEST = 11
"""Opset; before it, what pads and slices were attributes of other names."""


def read(path: Path) -> tuple[ModelProto, list[Path]]:
    """A model with all of its tensors, and the files beside it that some of them are in.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it holds no ONNX model, one of an opset that is not read, or lacks a file beside it.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf has kinds of its own
        raise CheckpointError(f"cannot read {path}: it is no ONNX model ({error})") from error
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if not model.HasField("graph") or not opset:
        raise CheckpointError(f"cannot read {path}: it is no ONNX model, or one without operations of ONNX")
    if not _OLDEST <= opset <= onnx.defs.onnx_opset_version():
        raise CheckpointError(
            f"{path} is of opset {opset}; {_OLDEST} to {onnx.defs.onnx_opset_version()} are read by the onnx that is "
            "installed, and onnx.version_converter makes another one of it"
        )
    beside = _files_beside(model, path.parent)
    try:
        onnx.load_external_data_for_model(model, os.fspath(path.parent))
    except Exception as error:  # onnx raises several kinds
        raise CheckpointError(f"cannot read {path}: a file of its tensors, {beside[0]}: {error}") from error
    return model, beside


def _files_beside(model: ModelProto, folder: Path) -> list[Path]:
    tensors = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return sorted({folder / ExternalDataInfo(tensor).location for tensor in tensors})


def data_of(path: Path) -> Path:
    """Where the tensors of a file are, if they are beside it."""
    return path.with_name(path.name + ".data")


def write(model: ModelProto, path: Path, beside: bool, source: Path) -> None:
    """Writes a model, its large tensors beside it if asked for, and checks it as onnx does.

    Raises:
        ExportError: if the check fails, where that of the source does not.
    """
    onnx.save_model(model, path, save_as_external_data=beside, location=data_of(path).name)
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as error:
        if _is_valid(source):
            raise ExportError(f"the fused graph of {source} is no model of ONNX: {error}") from error


def _is_valid(path: Path) -> bool:
    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError:
        return False
    return True
