"""DBB: k x k, 1x1, 1x1 then average pool, and 1x1 then k x k, with a batch norm after every operation."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ..branches import AvgPoolBranch, Branch, ConvBNBranch, SequentialBranch
from ..branches._stages import IdentityPlusPoint
from ._block import BranchFactory
from ._conv_block import ConvBlock


class DiverseBranchBlock(ConvBlock):
    r"""The diverse branch block, equal to one k x k convolution.

    $$y = \mathrm{BN}(W * x) + \mathrm{BN}(W_1 x) + \mathrm{BN}(\mathrm{pool}(\mathrm{BN}(W_p x)))
      + \mathrm{BN}(W_b * \mathrm{BN}((I + W_a) x))$$

    No convolution has a bias. If groups = in_channels = out_channels, the 1x1 term and $W_p$ are left out, as in the
    authors' code, and $(I + W_a)$ becomes a 1x1 convolution to twice the channels.

    Source: X. Ding, X. Zhang, J. Han, G. Ding, "Diverse Branch Block: Building a Convolution as an Inception-like
    Unit", CVPR 2021, arXiv 2103.13425. They pad the output of a 1x1 with the value that its batch norm returns for zero
    with *running* statistics, so in training the border does not match the interior. Here the batch's statistics are
    used.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`, without dilation, because an average pool has none.
        hidden_channels: channels between the 1x1 and the k x k; None means in_channels (twice that if depthwise). The
            identity is added to the 1x1 only if this equals in_channels.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or a dilation.

    Example:
        >>> import torch
        >>> block = DiverseBranchBlock(4, 6)
        >>> x = torch.rand(2, 4, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    hidden_channels: int | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The four terms."""
        depthwise = spec.groups == spec.in_channels == spec.out_channels
        hidden = self.hidden_channels or spec.in_channels * (1 + depthwise)
        points = [] if depthwise else [partial(ConvBNBranch, kernel_size=1, bn=self.bn)]
        pool = partial(AvgPoolBranch, conv=not depthwise, bn=self.bn)
        return [partial(ConvBNBranch, bn=self.bn), *points, pool, partial(_point_then_conv, hidden=hidden, bn=self.bn)]


def _point_then_conv(spec: ConvSpec, hidden: int, bn: NormChoice) -> Branch:
    equal = hidden == spec.in_channels
    point = spec.pointwise(out_channels=hidden, bias=False)
    first = IdentityPlusPoint(hidden, spec.groups, spec.ndim) if equal else point.new_conv()
    stages = [
        first,
        make_norm(bn, hidden, spec.ndim),
        spec.unpadded(in_channels=hidden, bias=False).new_conv(),
        make_norm(bn, spec.out_channels, spec.ndim),
    ]
    return SequentialBranch(spec, *(stage for stage in stages if stage is not None))
