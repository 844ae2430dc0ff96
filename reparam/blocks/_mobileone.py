"""MobileOne: several k x k convolutions, 1x1 and identity, each with a batch norm."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ConvBNBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class MobileOneBlock(ConvBlock):
    r"""The block of MobileOne, equal to one k x k convolution.

    $$y = \sum_{j=1}^{n} \mathrm{BN}_j(W^{(j)}_{k\times k} * x) + \mathrm{BN}_s(W_{1\times1} * x) + \mathrm{BN}_0(x)$$

    The 1x1 term exists if k > 1, the last term if the channels match and the stride is 1. MobileOne uses the block
    alternately depthwise (groups = channels) and pointwise (k = 1).

    Source: P. K. A. Vasu, J. Gabriel, J. Zhu, O. Tuzel, A. Ranjan, "MobileOne: An Improved One millisecond Mobile
    Backbone", CVPR 2023, arXiv 2206.04040, section 3.2. Their class includes squeeze-and-excite and ReLU, which stay
    outside here. It ignores the dilation in training; this one uses it.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        conv_branches: n, number of k x k terms (1, and 4 in the smallest network).
        identity: whether there is an identity branch; None means yes if the geometry has one.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> len(MobileOneBlock(8, groups=8, conv_branches=4).branches)
        6
    """

    conv_branches: int = 1
    identity: bool | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The k x k convolutions, the 1x1 convolution, the identity."""
        square, point = partial(ConvBNBranch, bn=self.bn), partial(ConvBNBranch, kernel_size=1, bn=self.bn)
        points = [point] * any(k > 1 for k in spec.kernel_size)
        return [*[square] * self.conv_branches, *points, *identities(spec, self.identity, bn=self.bn)]
