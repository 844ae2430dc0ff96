"""The blocks of the papers, one paper per file."""

from .acnet import ACBlock
from .dbb import DiverseBranchBlock
from .ecb import ECB
from .efdn import EDBB
from .fmen import RRRB
from .mobileone import MobileOneBlock
from .orepa import OREPABlock, OREPARepVGGBlock
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
    "MobileOneBlock",
    "OREPABlock",
    "OREPARepVGGBlock",
    "RepSRBlock",
    "RepVGGBlock",
]
