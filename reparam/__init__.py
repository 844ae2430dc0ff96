"""reparam: re-parameterizable blocks for PyTorch, exact at every moment and fused into one convolution."""

from .block import ReparamBlock, set_fold
from .blocks import (
    ECB,
    EDBB,
    RRRB,
    ACBlock,
    CollapsibleLinearBlock,
    Conv3XC,
    DilatedReparamBlock,
    DiverseBranchBlock,
    MBRConvBlock,
    MobileOneBlock,
    OREPABlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    RepMBConvBlock,
    RepRFNBlock,
    RepSRBlock,
    RepVGGBlock,
)
from .branches import (
    AvgPoolBranch,
    Branch,
    ConvBNBranch,
    ConvBranch,
    ExpandSqueezeBranch,
    IdentityBranch,
    LaplacianBranch,
    SequentialBranch,
    SobelBranch,
)
from .draw import draw
from .errors import (
    CheckpointError,
    ExportError,
    FuseError,
    NotLinearError,
    OptionError,
    ReparamError,
    SpecError,
    StatisticsError,
)
from .export import ExportReport, export
from .foreign import kernel_of
from .freeze import freeze_bn_stats, recalibrate_bn_stats, unfreeze_bn_stats
from .fuse import fuse, fused
from .gap import BNGap, BNGapReport, bn_gap
from .inspect import inspect_model
from .interop import fuse_file, fuse_state_dict, inspect_file, load_checkpoint, save_checkpoint
from .kernels import Kernel
from .models import (
    ECBSR,
    EDSR,
    SESR,
    CollapsibleSR,
    PlainSR,
    QARepVGGSR,
    RepSR,
    RepVGGSR,
    create_model,
    list_models,
    pretrained_file,
)
from .norm import FrozenStatsBN
from .quantize import LayerRange, QuantizationReport, quantize
from .schedule import BNFreezeSchedule
from .spec import ConvSpec
from .swap import SwapReport, swap_convs
from .upscale import Upscaler
from .verify import verify

__version__ = "0.1.0"

__all__ = [
    "ECB",
    "ECBSR",
    "EDBB",
    "EDSR",
    "RRRB",
    "SESR",
    "ACBlock",
    "AvgPoolBranch",
    "BNFreezeSchedule",
    "BNGap",
    "BNGapReport",
    "Branch",
    "CheckpointError",
    "CollapsibleLinearBlock",
    "CollapsibleSR",
    "Conv3XC",
    "ConvBNBranch",
    "ConvBranch",
    "ConvSpec",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "ExpandSqueezeBranch",
    "ExportError",
    "ExportReport",
    "FrozenStatsBN",
    "FuseError",
    "IdentityBranch",
    "Kernel",
    "LaplacianBranch",
    "LayerRange",
    "MBRConvBlock",
    "MobileOneBlock",
    "NotLinearError",
    "OREPABlock",
    "OREPARepVGGBlock",
    "OptionError",
    "PlainSR",
    "QARepVGGBlock",
    "QARepVGGSR",
    "QuantizationReport",
    "RepMBConvBlock",
    "RepRFNBlock",
    "RepSR",
    "RepSRBlock",
    "RepVGGBlock",
    "RepVGGSR",
    "ReparamBlock",
    "ReparamError",
    "SequentialBranch",
    "SobelBranch",
    "SpecError",
    "StatisticsError",
    "SwapReport",
    "Upscaler",
    "bn_gap",
    "create_model",
    "draw",
    "export",
    "freeze_bn_stats",
    "fuse",
    "fuse_file",
    "fuse_state_dict",
    "fused",
    "inspect_file",
    "inspect_model",
    "kernel_of",
    "list_models",
    "load_checkpoint",
    "pretrained_file",
    "quantize",
    "recalibrate_bn_stats",
    "save_checkpoint",
    "set_fold",
    "swap_convs",
    "unfreeze_bn_stats",
    "verify",
]
