"""EFDN: ECBSR's edge filters with a 1x1 convolution, and the expand-squeeze path as an option."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch, ExpandSqueezeBranch, LaplacianBranch, SobelBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class EDBB(ConvBlock):
    r"""The edge-enhanced diverse branch block of EFDN, equal to one k x k convolution.

    $$y = W * x + b + W_1 x + b_1 + \sum_{D \in \{D_x, D_y, L\}} s_D\,(D * (W_D x + b_D)) + c_D
      \;[+\; W_b * (W_a x + a) + c] \;[+\; x]$$

    Source: Y. Wang, "Edge-Enhanced Feature Distillation Network for Efficient Super-Resolution", CVPRW 2022. The
    activation, which the author's class holds, stays outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of the middle of an expand-squeeze path per output channel; None leaves the path out.
        identity: whether x is added; None means yes if the geometry has an identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, fewer than 3 taps, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = EDBB(4, expansion=2.0)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: float | None = None
    identity: bool | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The two convolutions, one edge filter per axis, the Laplacian, and the optional terms."""
        factories: list[BranchFactory] = [ConvBranch, partial(ConvBranch, kernel_size=1)]
        factories += [partial(SobelBranch, axis=-1 - axis) for axis in range(spec.ndim)]
        factories += [LaplacianBranch]
        if self.expansion is not None:
            factories += [partial(ExpandSqueezeBranch, expansion=self.expansion, order="1x1-kxk")]
        return factories + identities(spec, self.identity)
