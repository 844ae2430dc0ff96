"""The kinds of branch a block can be made of."""

from .base import Branch, ChainBranch
from .conv import ConvBNBranch, ConvBranch
from .edge import LaplacianBranch, SobelBranch
from .expand_squeeze import ExpandSqueezeBranch
from .identity import IdentityBranch
from .pool import AvgPoolBranch
from .sequential import SequentialBranch

__all__ = [
    "AvgPoolBranch",
    "Branch",
    "ChainBranch",
    "ConvBNBranch",
    "ConvBranch",
    "ExpandSqueezeBranch",
    "IdentityBranch",
    "LaplacianBranch",
    "SequentialBranch",
    "SobelBranch",
]
