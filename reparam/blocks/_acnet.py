"""ACNet: a square kernel and one line of taps along each axis."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ConvBNBranch
from ._block import BranchFactory
from ._conv_block import ConvBlock
from ._sizes import lines_of


class ACBlock(ConvBlock):
    r"""The asymmetric convolution block of ACNet, equal to one k x k convolution.

    $$y = \mathrm{BN}_s(W_{k\times k} * x) + \mathrm{BN}_v(W_{k\times1} * x) + \mathrm{BN}_h(W_{1\times k} * x)$$

    In one dimension both terms have k taps; in three dimensions there are three lines.

    Source: X. Ding, Y. Guo, G. Ding, J. Han, "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric
    Convolution Blocks", ICCV 2019, arXiv 1908.03930, section 3.2. Their class fails with a dilation; this one works.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> import torch
        >>> block = ACBlock(4, 6)
        >>> block.branches[1].conv.kernel_size == (3, 1) and block.branches[2].conv.kernel_size == (1, 3)
        True
    """

    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The square and the lines."""
        square = partial(ConvBNBranch, bn=self.bn)
        return [square, *(partial(square, kernel_size=line) for line in lines_of(spec.kernel_size))]
