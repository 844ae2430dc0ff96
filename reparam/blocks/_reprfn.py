"""RepRFN: convolutions of every shape, the expand-squeeze path and ECBSR's edge filters."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch, ExpandSqueezeBranch, LaplacianBranch, SobelBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock
from ._sizes import lines_of


class RepRFNBlock(ConvBlock):
    r"""The reparameterized block of RepRFN, equal to one k x k convolution.

    $$y = \sum_{s \in \{k\times k,\, k\times1,\, 1\times k,\, 1\times1\}} (W_s * x + b_s) + W_b * (W_a x)
      + \sum_{D \in \{D_x, D_y, L\}} s_D\,(D * (W_D x + b_D)) + c_D \;[+\; x]$$

    $W_a$ is (2 in, in / groups, 1, 1) and $W_b$ (out, 2 in / groups, k, k), both without bias. In one dimension there
    is one line of k taps, in three there are three. x is added if the geometry has an identity.

    Source: W. Deng et al., "Reparameterized Residual Feature Network For Lightweight Image
    Super-Resolution", CVPRW 2023; class RepBlock of the authors' code, which has 3x3 kernels only, always adds x, and
    includes the activation, which stays outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: rows of $W_a$ per input channel.
        identity: whether x is added; None means yes if the geometry has an identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, fewer than 3 taps, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = RepRFNBlock(4)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: int = 2
    identity: bool | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The square, one line per axis, the 1x1, the expand-squeeze path, the edge filters, the identity."""
        lines = [partial(ConvBranch, kernel_size=line) for line in lines_of(spec.kernel_size)]
        factories: list[BranchFactory] = [ConvBranch, *lines]
        factories += [partial(ConvBranch, kernel_size=1)]
        hidden = self.expansion * spec.in_channels
        factories += [partial(ExpandSqueezeBranch, hidden_channels=hidden, order="1x1-kxk", bias=False)]
        factories += [partial(SobelBranch, axis=-1 - axis) for axis in range(spec.ndim)]
        return [*factories, LaplacianBranch, *identities(spec, self.identity)]
