"""FMEN: a residual in a residual around a k x k convolution in a wider middle."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import Branch, ConvBranch, SequentialBranch
from ..branches._identity import identities
from ._block import BranchFactory, ReparamBlock
from ._conv_block import ConvBlock


class RRRB(ConvBlock):
    r"""The re-parameterizable residual-in-residual block of FMEN, equal to one k x k convolution.

    $$y = x + W_3\,(W_2 * e + b_2 + e) + b_3,\qquad e = W_1 x + b_1$$

    $W_1$ is (2C, C, 1, 1), $W_2$ (2C, 2C, k, k), $W_3$ (C, 2C, 1, 1). The residuals exist if the geometry has an
    identity, the outer one only if the channels match.

    Source: Z. Du, D. Liu, J. Liu, J. Tang, G. Wu, L. Fu, "Fast and Memory-Efficient Network Towards Efficient Image
    Super-Resolution", CVPRW 2022. They pad e with its bias; padding x first, as here, is equivalent.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of the middle per input channel.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> import torch
        >>> block = RRRB(4)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: int = 2

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The outer residual and the chain."""
        return [partial(_inner_residual, expansion=self.expansion), *identities(spec)]


def _inner_residual(spec: ConvSpec, expansion: int) -> Branch:
    wide = expansion * spec.in_channels
    middle = spec.unpadded(in_channels=wide, out_channels=wide, bias=True)
    inner = ReparamBlock(middle, [ConvBranch, *identities(middle)])
    expand, reduce = (spec.pointwise(**{end: wide}, bias=True) for end in ("out_channels", "in_channels"))
    return SequentialBranch(spec, expand.new_conv(), inner, reduce.new_conv())
