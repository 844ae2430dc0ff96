"""Super-resolution networks made of the blocks."""

from .edsr import EDSR
from .net import ECBSR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR, SRNet
from .pretrained import pretrained_file
from .registry import create_model, list_models
from .sesr import SESR

__all__ = [
    "ECBSR",
    "EDSR",
    "SESR",
    "CollapsibleSR",
    "PlainSR",
    "QARepVGGSR",
    "RepSR",
    "RepVGGSR",
    "SRNet",
    "create_model",
    "list_models",
    "pretrained_file",
]
