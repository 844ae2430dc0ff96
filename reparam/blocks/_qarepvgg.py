"""QARepVGG: k x k with a batch norm, 1x1 and identity without, and a batch norm after the sum."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import AvgPoolBranch, Branch, ConvBNBranch, ConvBranch, SequentialBranch
from ..branches._identity import identities
from ..branches._stages import ChannelScale
from ._block import BranchFactory
from ._conv_block import ConvBlock


class QARepVGGBlock(ConvBlock):
    r"""The block of QARepVGG, equal to one k x k convolution whose weights quantize well.

    $$y = \mathrm{BN}\big(\mathrm{BN}_3(W_{k\times k} * x) + \alpha\,(W_{1\times1} * x + b) + x\;[+\;
      \mathrm{pool}(x)]\big)$$

    The identity exists if the channels match and the stride is 1. $\alpha$ is one learned number, or fixed at 1.

    Source: X. Chu, L. Li, B. Zhang, "Make RepVGG Greater Again: A Quantization-aware Approach", AAAI 2024, arXiv
    2212.01593. The defaults are those of the authors' YOLOv6 (class QARepVGGBlock; V2 has the pool too), which has 3x3
    kernels only. super-gradients has b (`point_bias=True`), and optionally $\alpha$, or no batch norm after the sum.
    Both classes include an activation and a gate, which stay outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`; the batch norm after the sum needs `bias=True`.
        identity: whether x is added; None means yes if the geometry has an identity.
        point_bias: whether the 1x1 convolution has the bias b.
        alpha: whether the 1x1 term has the learned factor $\alpha$, which starts at 1.
        pool: whether the mean over the window is added too, if x is; not possible with a dilation.
        bn: whether a batch norm follows the k x k convolution, or a callable that makes one.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, `bias=False`, `identity=True` if it has no identity, or a
            pool with a dilation.

    Example:
        >>> import torch
        >>> block = QARepVGGBlock(4, alpha=True, point_bias=True)
        >>> x = torch.rand(2, 4, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    sum_bn = True
    identity: bool | None = None
    point_bias: bool = False
    alpha: bool = False
    pool: bool = False
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The two convolutions, and the identity and the pool, if any."""
        point = partial(_scaled_point if self.alpha else partial(ConvBranch, kernel_size=1), bias=self.point_bias)
        identity = identities(spec, self.identity)
        pools = [partial(AvgPoolBranch, conv=False)] * (self.pool and len(identity))
        return [partial(ConvBNBranch, bn=self.bn), point, *identity, *pools]


def _scaled_point(spec: ConvSpec, bias: bool) -> Branch:
    point = spec.pointwise(stride=spec.stride, bias=bias)
    return SequentialBranch(spec, point.new_conv(), ChannelScale(spec.out_channels, spec.ndim, shared=True))
