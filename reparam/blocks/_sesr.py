"""SESR: one k x k convolution to many channels, one 1x1 back, and a short residual."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ExpandSqueezeBranch
from ..branches._identity import identities
from ._block import BranchFactory
from ._conv_block import ConvBlock


class CollapsibleLinearBlock(ConvBlock):
    r"""The collapsible linear block of SESR, equal to one k x k convolution.

    $$y = W_{1\times1}\,(W_{k\times k} * x + c) + d \;[+\; x]$$

    $W_{k\times k}$ is (p, C, k, k), $W_{1\times1}$ is (C, p, 1, 1). The residual exists if the geometry has an
    identity.

    Source: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, arXiv
    2103.09404. In the authors' collapsed training, the biases of both convolutions leak into every tap of the kernel,
    so it equals the expanded block only without biases. Here they are biases of the output, and folding is exact.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        hidden_channels: p (256; 64 for the network of 11 blocks and the largest).
        identity: whether x is added; None means yes if the geometry has an identity.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> import torch
        >>> block = CollapsibleLinearBlock(4)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    hidden_channels: int = 256
    identity: bool | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The expand-squeeze path and the residual."""
        return [partial(ExpandSqueezeBranch, hidden_channels=self.hidden_channels), *identities(spec, self.identity)]
