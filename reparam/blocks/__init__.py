"""The blocks of the papers, one paper per file."""

from .ecb import ECB
from .repsr import RepSRBlock
from .repvgg import RepVGGBlock

__all__ = ["ECB", "RepSRBlock", "RepVGGBlock"]
