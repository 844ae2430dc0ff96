"""SPAN: a 1x1 skip and a chain of 1x1, k x k, 1x1."""

from __future__ import annotations

from functools import partial

from torch import nn

from ..algebra._spec import ConvSpec
from ..branches import Branch, ConvBranch, SequentialBranch
from ._block import BranchFactory
from ._conv_block import ConvBlock


class Conv3XC(ConvBlock):
    r"""The convolution of SPAN, equal to one k x k convolution.

    $$y = W_s x + b_s + W_3\,(W_2 * (W_1 x + b_1) + b_2) + b_3$$

    $W_1$ is (gain * in, in, 1, 1), $W_2$ (gain * out, gain * in, k, k), $W_3$ (out, gain * out, 1, 1); with groups all
    are grouped. x is padded before $W_1$, as in the authors' code.

    Source: C. Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPRW 2024, arXiv
    2311.12770; class Conv3XC of the authors' code. That class keeps a convolution next to the branches, which becomes
    stale until a method renews it, and has 3x3 kernels without groups only.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        gain: how much wider the chain is.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> import torch
        >>> block = Conv3XC(4, 6)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    gain: int = 2

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The skip and the chain."""
        return [partial(ConvBranch, kernel_size=1), partial(_wide_path, gain=self.gain)]


def _wide_path(spec: ConvSpec, gain: int) -> Branch:
    wide_in, wide_out = gain * spec.in_channels, gain * spec.out_channels
    convs: list[nn.Module] = [
        spec.pointwise(out_channels=wide_in, bias=True).new_conv(),
        spec.unpadded(in_channels=wide_in, out_channels=wide_out, bias=True).new_conv(),
        spec.pointwise(in_channels=wide_out, bias=True).new_conv(),
    ]
    return SequentialBranch(spec, *convs)
