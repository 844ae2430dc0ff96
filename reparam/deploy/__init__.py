"""Fused networks as files that other programs run."""

from ._engines import FILE_ENGINES, open_engine
from ._exporter import ExportReport, export
from ._formats import read_note

__all__ = ["FILE_ENGINES", "ExportReport", "export", "open_engine", "read_note"]
