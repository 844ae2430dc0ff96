"""Exports fused networks as files that other programs run, and fuses ONNX files."""

from ._engines import FILE_ENGINES, open_engine
from ._exporter import ExportReport, export
from ._fuse_onnx import OnnxRegion, OnnxReport, fuse_onnx
from ._notes import read_note

__all__ = [
    "FILE_ENGINES",
    "ExportReport",
    "OnnxRegion",
    "OnnxReport",
    "export",
    "fuse_onnx",
    "open_engine",
    "read_note",
]
