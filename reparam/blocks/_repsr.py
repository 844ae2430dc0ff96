"""RepSR: a clean identity and two expand-squeeze paths with batch norm."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ExpandSqueezeBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class RepSRBlock(ConvBlock):
    r"""The block of RepSR, equal to one k x k convolution.

    $$y = x + \sum_{j=1}^{2} W^{(j)}_{1\times1}\,\mathrm{BN}_j\big(W^{(j)}_{k\times k} * x + c_j\big) + d_j$$

    $W_{k\times k}$ is (2C, C / groups, k, k), $W_{1\times1}$ is (C, 2C / groups, 1, 1). The identity exists if
    the channels match and the stride is 1. Train on batch statistics first, and call `freeze_bn_stats` for the last
    tenth of the training: this removes the artifacts that batch norm causes in super-resolution.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR: Training Efficient VGG-style Super-Resolution Networks with Structural
    Re-Parameterization and Batch Normalization", ACM MM 2022, arXiv 2205.05671. Its code was not released; order, norm
    and biases follow the paper's description and two unofficial implementations. The initialization is ours: biases
    start at zero, the second convolution with 0.3 times torch's weights and the batch norm with a weight of 0.1, so a
    block starts near the identity. The page on results compares it with torch's.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of the middle per output channel.
        paths: number of expand-squeeze paths.
        identity: whether there is an identity; None means yes if the geometry has one.
        bn: whether the paths have batch norms, or a callable that makes one from the channel count.
        gain: factor on the initial weights of the second convolutions.
        bn_weight: initial weight of the batch norms.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = RepSRBlock(16).train()
        >>> x = torch.rand(4, 16, 12, 12)
        >>> _ = block(x)
        >>> conv = block.eval().to_conv()
        >>> torch.allclose(conv(x), block(x), atol=1e-5)
        True
    """

    expansion: float = 2.0
    paths: int = 2
    identity: bool | None = None
    bn: NormChoice = True
    gain: float = 0.3
    bn_weight: float = 0.1

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The identity, if any, and the paths."""
        path = partial(
            ExpandSqueezeBranch, expansion=self.expansion, bn=self.bn, gain=self.gain, bn_weight=self.bn_weight
        )
        return [*identities(spec, self.identity), *[path] * self.paths]
