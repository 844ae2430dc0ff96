"""The kinds of branch a block can be made of."""

from ._base import Branch
from ._chain import ChainBranch
from ._conv import ConvBNBranch, ConvBranch
from ._edge import LaplacianBranch, SobelBranch
from ._expand_squeeze import ExpandSqueezeBranch
from ._identity import IdentityBranch
from ._pool import AvgPoolBranch
from ._sequential import SequentialBranch
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
    "SequentialBranch",
    "SobelBranch",
]
