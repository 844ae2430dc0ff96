"""The branches of one convolution, with and without a batch norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ._chain import ChainBranch


def _own_conv(
    spec: ConvSpec, kernel_size: int | Sequence[int] | None, dilation: int | Sequence[int] | None, bias: bool
) -> nn.Module:
    """An unpadded convolution of the spec, possibly with fewer taps or with taps further apart."""
    size = spec.kernel_size if kernel_size is None else kernel_size
    apart = spec.dilation if dilation is None else dilation
    return spec.unpadded(kernel_size=size, dilation=apart, bias=bias).new_conv()


class ConvBranch(ChainBranch):
    r"""A convolution, y = W * x + b, with as many taps as the spec or fewer.

    Args:
        spec: the geometry; the center tap of a smaller kernel is on the spec's center tap.
        kernel_size: taps of this branch; None means the spec's.
        dilation: distance between its taps, in pixels, a multiple of the spec's; None means the spec's.
        bias: whether the convolution has a bias.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: if the taps reach further than the spec's, or are at positions where the spec has none.

    Example:
        >>> branch = ConvBranch(ConvSpec(4, 6, 3), kernel_size=1)
        >>> branch.kernel().weight.shape == (6, 4, 3, 3)
        True
    """

    def __init__(
        self,
        spec: ConvSpec,
        *,
        kernel_size: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(spec)
        self.conv = _own_conv(spec, kernel_size, dilation, bias)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.conv]


class ConvBNBranch(ChainBranch):
    r"""A convolution and a batch norm, y = BN(W * x): the branch of RepVGG, ACNet, DBB and MobileOne.

    $$y = \gamma \frac{W * x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

    Source: X. Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, arXiv 2101.03697, eq. 2 and 3.

    Args:
        spec: the geometry; the center tap of a smaller kernel is on the spec's center tap.
        kernel_size: taps of this branch; None means the spec's.
        dilation: distance between its taps, in pixels, a multiple of the spec's; None means the spec's.
        bias: whether the convolution has a bias; in training, the batch norm subtracts it again with the mean.
        bn: True, or a callable that makes the batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: if the taps reach further than the spec's, or are at positions where the spec has none.

    Example:
        >>> branch = ConvBNBranch(ConvSpec(4)).eval()
        >>> bool(branch.norm.weight.eq(1).all())
        True
    """

    def __init__(
        self,
        spec: ConvSpec,
        *,
        kernel_size: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] | None = None,
        bias: bool = False,
        bn: NormChoice = True,
    ) -> None:
        super().__init__(spec)
        self.conv = _own_conv(spec, kernel_size, dilation, bias)
        self.norm = make_norm(bn, spec.out_channels, spec.ndim)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.conv] if self.norm is None else [self.conv, self.norm]
