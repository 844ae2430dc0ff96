"""Networks in 8 bits, after their training."""

from .quantizer import QuantizationReport, quantize
from .ranges import LayerRange

__all__ = ["LayerRange", "QuantizationReport", "quantize"]
