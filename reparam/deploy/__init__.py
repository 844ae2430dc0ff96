"""Fused networks as files that other programs run."""

from ._exporter import ExportReport, export

__all__ = ["ExportReport", "export"]
