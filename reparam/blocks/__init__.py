"""The blocks of the papers, one paper per file."""

from .acnet import ACBlock
from .dbb import DiverseBranchBlock
from .ecb import ECB
from .efdn import EDBB
from .fmen import RRRB
from .mobileie import MBRConvBlock
from .mobileone import MobileOneBlock
from .orepa import OREPABlock, OREPARepVGGBlock
from .plainusr import RepMBConvBlock
from .qarepvgg import QARepVGGBlock
from .reprfn import RepRFNBlock
from .repsr import RepSRBlock
from .repvgg import RepVGGBlock
from .sesr import CollapsibleLinearBlock
from .span import Conv3XC
from .unireplknet import DilatedReparamBlock

__all__ = [
    "ECB",
    "EDBB",
    "RRRB",
    "ACBlock",
    "CollapsibleLinearBlock",
    "Conv3XC",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "MBRConvBlock",
    "MobileOneBlock",
    "OREPABlock",
    "OREPARepVGGBlock",
    "QARepVGGBlock",
    "RepMBConvBlock",
    "RepRFNBlock",
    "RepSRBlock",
    "RepVGGBlock",
]
