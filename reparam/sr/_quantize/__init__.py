"""Quantizes networks to 8 bits after training."""

from .quantizer import QuantizationReport, quantize
from .ranges import LayerRange

__all__ = ["LayerRange", "QuantizationReport", "quantize"]
