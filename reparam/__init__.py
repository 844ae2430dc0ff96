"""reparam: re-parameterizable blocks for PyTorch, exact at every moment and fused into one convolution."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .algebra import *
    from .blocks import *
    from .bn import *
    from .branches import *
    from .deploy import *
    from .drawing import *
    from .errors import *
    from .files import *
    from .fusing import *
    from .models import *
    from .sr import *

__version__ = "0.2.0"

__all__ = [
    "ECB",
    "EDBB",
    "RRRB",
    "ACBlock",
    "AvgPoolBranch",
    "BNFreezeSchedule",
    "Branch",
    "ChainBranch",
    "ChunkConv",
    "CollapsibleLinearBlock",
    "Conv3XC",
    "ConvBNBranch",
    "ConvBlock",
    "ConvBranch",
    "ConvSpec",
    "DilatedReparamBlock",
    "DiverseBranchBlock",
    "ExpandSqueezeBranch",
    "FrozenStatsBN",
    "IdentityBranch",
    "Kernel",
    "LaplacianBranch",
    "LoRABlock",
    "LoRABranch",
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
    "ReparamError",
    "ScaledBranch",
    "SequentialBranch",
    "SliceBranch",
    "SobelBranch",
    "VGGBlock",
    "bn_gap",
    "draw",
    "export",
    "freeze_bn_stats",
    "fuse",
    "fuse_file",
    "fuse_onnx",
    "fuse_state_dict",
    "inspect_file",
    "inspect_model",
    "kernel_of",
    "macs",
    "recalibrate_bn_stats",
    "reset_parameters",
    "set_fold",
    "swap_convs",
    "tune_fold",
    "unfreeze_bn_stats",
    "verify",
]

_ROOMS = ("errors", "algebra", "bn", "branches", "blocks", "fusing", "models", "files", "deploy", "drawing", "sr")
"""In which a name is looked for, in this order; torch is imported with the first."""
_MORE_ROOMS = ("folding", "bench", "interop")
"""Of which nothing is at the top."""


def __getattr__(name: str) -> Any:
    if name in (*_ROOMS, *_MORE_ROOMS):
        return import_module(f".{name}", __name__)
    if not name.startswith("_"):
        for room in _ROOMS:
            face = import_module(f".{room}", __name__)
            if name in face.__all__:
                globals()[name] = getattr(face, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS, *_MORE_ROOMS})
