"""The blocks from the papers, one paper per file."""

from ._acnet import ACBlock
from ._block import ReparamBlock
from ._conv_block import ConvBlock
from ._dbb import DiverseBranchBlock
from ._ecb import ECB
from ._efdn import EDBB
from ._fmen import RRRB
from ._lora import LoRABlock
from ._mobileie import MBRConvBlock
from ._mobileone import MobileOneBlock
from ._orepa import OREPABlock, OREPARepVGGBlock
from ._plainusr import RepMBConvBlock
from ._qarepvgg import QARepVGGBlock
from ._repnext import ChunkConv, RepDWConvM, RepDWConvS
from ._reprfn import RepRFNBlock
from ._reprlfn import RepRLFNBlock
from ._repsr import RepSRBlock
from ._repvgg import RepVGGBlock
from ._repvit import RepVGGDW
from ._reset import reset_parameters
from ._rtmosr import OmniShift, RTMoSRRepConv
from ._sesr import CollapsibleLinearBlock
from ._set_fold import set_fold
from ._span import Conv3XC
from ._tune import FoldReport, FoldTime, tune_fold
from ._unireplknet import DilatedReparamBlock
from ._vggblock import VGGBlock

__all__ = [
    "ECB",
    "EDBB",
    "RRRB",
    "ACBlock",
    "ChunkConv",
    "CollapsibleLinearBlock",
    "Conv3XC",
    "ConvBlock",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "FoldReport",
    "FoldTime",
    "LoRABlock",
    "MBRConvBlock",
    "MobileOneBlock",
    "OREPABlock",
    "OREPARepVGGBlock",
    "OmniShift",
    "QARepVGGBlock",
    "RTMoSRRepConv",
    "RepDWConvM",
    "RepDWConvS",
    "RepMBConvBlock",
    "RepRFNBlock",
    "RepRLFNBlock",
    "RepSRBlock",
    "RepVGGBlock",
    "RepVGGDW",
    "ReparamBlock",
    "VGGBlock",
    "reset_parameters",
    "set_fold",
    "tune_fold",
]
