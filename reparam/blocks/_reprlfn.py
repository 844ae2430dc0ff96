"""RepRLFN: convolutions of every shape, and the identity."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock
from ._sizes import lines_of


class RepRLFNBlock(ConvBlock):
    r"""The reparameterized block of RepRLFN, equal to one k x k convolution.

    $$y = \sum_{s \in \{k\times k,\, k\times1,\, 1\times k,\, 1\times1\}} (W_s * x + b_s) \;[+\; x]$$

    In one dimension there is one line of k taps, in three there are three. x is added if the geometry has an
    identity. It is `RepRFNBlock` without the expand-squeeze path and the edge filters.

    Source: class RepBlock of RepRLFN, an entry of the NTIRE 2025 challenge on efficient super-resolution (B. Ren et
    al., "The Tenth NTIRE 2025 Efficient Super-Resolution Challenge Report", CVPRW 2025, arXiv 2504.10686), which has
    3x3 kernels only, always adds x, and includes the activation, which stays outside here.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        identity: whether x is added; None means yes if the geometry has an identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = RepRLFNBlock(4)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    identity: bool | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The square, one line per axis, the 1x1, the identity."""
        lines = [partial(ConvBranch, kernel_size=line) for line in lines_of(spec.kernel_size)]
        return [ConvBranch, *lines, partial(ConvBranch, kernel_size=1), *identities(spec, self.identity)]
