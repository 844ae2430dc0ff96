"""RepVGG: k x k, 1x1 and identity, each with a batch norm."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ConvBNBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class RepVGGBlock(ConvBlock):
    r"""The block of RepVGG, equal to one k x k convolution.

    $$y = \mathrm{BN}_3(W_{k\times k} * x) + \mathrm{BN}_1(W_{1\times1} * x) + \mathrm{BN}_0(x)$$

    The convolutions have no bias. The last term exists if the channels match and the stride is 1.

    Source: X. Ding, X. Zhang, N. Ma, J. Han, G. Ding, J. Sun, "RepVGG: Making VGG-style ConvNets Great Again", CVPR
    2021, arXiv 2101.03697, section 3.3. Their class includes the ReLU, which stays outside here. It takes 3x3 kernels
    only and ignores `dilation` and `padding_mode` in training; this one uses them.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        identity: whether there is an identity branch; None means yes if the geometry has one.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = RepVGGBlock(8, 16, stride=2)
        >>> x = torch.rand(2, 8, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    identity: bool | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The k x k convolution, the 1x1 convolution, and the identity, if any."""
        convs = [partial(ConvBNBranch, bn=self.bn), partial(ConvBNBranch, kernel_size=1, bn=self.bn)]
        return [*convs, *identities(spec, self.identity, bn=self.bn)]
