"""Super-resolution networks built from the blocks."""

from ._edsr import EDSR
from ._net import ECBSR, CollapsibleSR, PlainSR, QARepVGGSR, RepSR, RepVGGSR, SRNet
from ._pretrained import pretrained_file
from ._registry import Network, create_model, list_models
from ._sesr import SESR

__all__ = [
    "ECBSR",
    "EDSR",
    "SESR",
    "CollapsibleSR",
    "Network",
    "PlainSR",
    "QARepVGGSR",
    "RepSR",
    "RepVGGSR",
    "SRNet",
    "create_model",
    "list_models",
    "pretrained_file",
]
