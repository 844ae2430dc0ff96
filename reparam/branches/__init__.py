"""The types of branches that blocks consist of."""

from ._base import Branch
from ._chain import ChainBranch
from ._conv import ConvBNBranch, ConvBranch
from ._edge import LaplacianBranch, SobelBranch
from ._expand_squeeze import ExpandSqueezeBranch
from ._identity import IdentityBranch
from ._lora import LoRABranch
from ._pool import AvgPoolBranch
from ._scaled import ScaledBranch
from ._sequential import SequentialBranch
from ._slice import SliceBranch
from ._stages import ChannelScale

__all__ = [
    "AvgPoolBranch",
    "Branch",
    "ChainBranch",
    "ChannelScale",
    "ConvBNBranch",
    "ConvBranch",
    "ExpandSqueezeBranch",
    "IdentityBranch",
    "LaplacianBranch",
    "LoRABranch",
    "ScaledBranch",
    "SequentialBranch",
    "SliceBranch",
    "SobelBranch",
]
