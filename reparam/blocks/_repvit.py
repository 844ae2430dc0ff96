"""RepViT and YOLOv10: a depthwise convolution, a smaller one in parallel, and the identity."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ConvBNBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class RepVGGDW(ConvBlock):
    r"""The depthwise block of RepViT, LSNet and YOLOv10, equal to one k x k convolution.

    $$y = \mathrm{BN}\big(\mathrm{BN}_k(W_{k\times k} * x) + W_s * x + b \;[+\; x]\big)$$

    Used with groups = channels. In RepViT $W_s$ is 1x1, which makes it the same as
    `QARepVGGBlock(c, groups=c, point_bias=True)`. LSNet has $\mathrm{BN}_s(W_s * x)$ instead of $W_s * x + b$ and no
    batch norm after the sum: `small_bn=True, sum_bn=False`. YOLOv10 has 7x7 and 3x3 taps and also leaves out x:
    `RepVGGDW(c, kernel_size=7, groups=c, small_size=3, small_bn=True, identity=False, sum_bn=False)`.

    Source: class RepVGGDW of three codebases: A. Wang, H. Chen, Z. Lin, J. Han, G. Ding, "RepViT: Revisiting Mobile CNN
    From ViT Perspective", CVPR 2024, arXiv 2307.09283; A. Wang et al., "LSNet: See Large, Focus Small", CVPR 2025,
    arXiv 2503.23135; A. Wang et al., "YOLOv10: Real-Time End-to-End Object Detection", NeurIPS 2024, arXiv 2405.14458,
    which holds an activation that stays outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`; the batch norm after the sum needs `bias=True`.
        small_size: taps of $W_s$ per axis.
        small_bn: whether a batch norm follows $W_s$, instead of its bias, or a callable that makes one.
        identity: whether x is added; None means yes if the geometry has an identity.
        bn: whether a batch norm follows the k x k convolution, or a callable that makes one.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, a small kernel that does not fit, `bias=False` with the batch
            norm after the sum, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = RepVGGDW(8, groups=8)
        >>> x = torch.rand(2, 8, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    sum_bn = True
    small_size: int = 1
    small_bn: NormChoice = False
    identity: bool | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The two convolutions, and the identity, if any."""
        small = partial(ConvBNBranch, kernel_size=self.small_size, bias=not self.small_bn, bn=self.small_bn)
        return [partial(ConvBNBranch, bn=self.bn), small, *identities(spec, self.identity)]
