"""RTMoSR: three k x k paths, and depthwise convolutions of several sizes, each with a learned weight."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch, ExpandSqueezeBranch, ScaledBranch
from ..branches._geometry import Sizes
from ..branches._identity import identities
from ._arguments import argument
from ._block import BranchFactory, ReparamBlock
from ._conv_block import ConvBlock
from ._span import Conv3XC


class RTMoSRRepConv(ConvBlock):
    r"""The RepConv of RTMoSR, equal to one k x k convolution.

    $$y = a_1\,\big(W_2 * (W_1 x + b_1) + b_2\big) + a_2\,(W * x + b) + a_3\,\mathrm{Conv3XC}(x)$$

    $W_1$ is (2 out, in, 1, 1), $W_2$ (out, 2 out, k, k); $a_1$, $a_2$ and $a_3$ are one number each and start at 1.

    Source: class RepConv of RTMoSR in traiNNer-redux and neosr, which has 3x3 kernels only and computes a convolution
    in each call of `eval()`. ECBSR's path and SPAN's block (`Conv3XC`) are two of its terms. They pad $W_1 x + b_1$
    with $b_1$; padding x first, as here, is equivalent.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: rows of $W_1$ per output channel.
        gain: how much wider the chain of `Conv3XC` is.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> import torch
        >>> block = RTMoSRRepConv(3, 8)
        >>> x = torch.rand(1, 3, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: float = 2.0
    gain: int = 2

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The convolution, the expand-squeeze path and the block of SPAN."""
        path = partial(ExpandSqueezeBranch, expansion=self.expansion, order="1x1-kxk")
        span = partial(ReparamBlock, branches=Conv3XC.planned(spec, gain=self.gain))
        return [partial(ScaledBranch, branch=branch, shared=True) for branch in (ConvBranch, path, span)]


class OmniShift(ConvBlock):
    r"""The depthwise shift of Restore-RWKV, FlexNet and RTMoSR, equal to one 5x5 convolution.

    $$y = a_1 x + a_2 (W_{1\times1} * x + b_1) + a_3 (W_{3\times3} * x + b_3) + a_4 (W_{5\times5} * x + b_5)$$

    Used with groups = channels. In RTMoSR each weight a is a vector with one number per channel. In Restore-RWKV and
    FlexNet each is a single number (`shared=True`), and there are no biases (`conv_bias=False`). For another kernel
    size than 5, the convolutions have the sizes 1, 3 and that size, each once.

    Source: Z. Yang, J. Li, H. Zhang, D. Zhao, B. Wei, Y. Xu, "Restore-RWKV: Efficient and Effective Medical Image
    Restoration with RWKV", arXiv 2407.11087; classes OmniShift of RTMoSR and FlexNet in traiNNer-redux. The weights
    start at 1, as in RTMoSR; in the source code, shared weights start at random values.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        shared: whether all channels have the same a.
        conv_bias: whether the convolutions have biases.
        identity: whether there is a term $a_1 x$; None means yes if the geometry has an identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> block = OmniShift(8, groups=8)
        >>> [branch.branch.conv.kernel_size[0] for branch in block.branches[:3]]
        [5, 3, 1]
    """

    kernel_size: Sizes = argument(default=5, kw_only=False)
    shared: bool = False
    conv_bias: bool = True
    identity: bool | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The convolutions, the largest one first, and the identity, if any."""
        sizes = [tuple(min(k, size) for k in spec.kernel_size) for size in (max(spec.kernel_size), 3, 1)]
        convs = [partial(ConvBranch, kernel_size=size, bias=self.conv_bias) for size in dict.fromkeys(sizes)]
        parts: list[BranchFactory] = [*convs, *identities(spec, self.identity)]
        return [partial(ScaledBranch, branch=branch, shared=self.shared) for branch in parts]
