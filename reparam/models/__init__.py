"""Super-resolution networks made of the blocks."""

from .net import PlainSR, RepSR, SRNet
from .registry import create_model, list_models

__all__ = ["PlainSR", "RepSR", "SRNet", "create_model", "list_models"]
