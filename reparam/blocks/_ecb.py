"""ECB: a plain convolution, an expand-squeeze path and three edge filters, without batch norm."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch, ExpandSqueezeBranch, LaplacianBranch, SobelBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class ECB(ConvBlock):
    r"""The edge-oriented convolution block of ECBSR, equal to one k x k convolution.

    $$y = W * x + b + W_b * (W_a x + a) + c + \sum_{D \in \{D_x, D_y, L\}} s_D\,(D * (W_D x + b_D)) + c_D \;[+\; x]$$

    W is (C, C / groups, k, k), $W_a$ (2C, C / groups, 1, 1), $W_b$ (C, 2C / groups, k, k); the edge filters are
    `SobelBranch` and `LaplacianBranch`.

    Source: X. Zhang, H. Zeng, L. Zhang, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
    Devices", ACM MM 2021. The activation, which their class holds, stays outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of the middle per output channel ("depth multiplier"; 2 in their configurations).
        identity: whether x is added; None means yes if the geometry has an identity. Off in their configurations.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, fewer than 3 taps, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = ECB(8, 12)
        >>> x = torch.rand(1, 8, 9, 9)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: float = 2.0
    identity: bool | None = False

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The plain convolution, the expand-squeeze path, one edge filter per axis, the Laplacian."""
        sobels: list[BranchFactory] = [partial(SobelBranch, axis=-1 - axis) for axis in range(spec.ndim)]
        path = partial(ExpandSqueezeBranch, expansion=self.expansion, order="1x1-kxk")
        return [ConvBranch, path, *sobels, LaplacianBranch, *identities(spec, self.identity)]
