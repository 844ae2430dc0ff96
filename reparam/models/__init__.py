"""Super-resolution networks made of the blocks."""

from .edsr import EDSR
from .net import ECBSR, PlainSR, RepSR, RepVGGSR, SRNet
from .registry import create_model, list_models
from .sesr import SESR

__all__ = ["ECBSR", "EDSR", "SESR", "PlainSR", "RepSR", "RepVGGSR", "SRNet", "create_model", "list_models"]
