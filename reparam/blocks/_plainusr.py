"""PlainUSR: FMEN's block with a gate that does not depend on the input."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra._linear import LinearOp, linear_op
from ..algebra._spec import ConvSpec
from ..branches import Branch, SequentialBranch
from ..branches._identity import identities
from ..branches._stages import per_channel
from ._block import BranchFactory, ReparamBlock
from ._conv_block import ConvBlock


class RepMBConvBlock(ConvBlock):
    r"""The re-parameterizable MBConv of PlainUSR, equal to one k x k convolution.

    $$y = x + W_3\,\big(g \odot (W_2 * e + b_2) + e\big) + b_3,\qquad e = W_1 x + b_1,\qquad
      g = \sigma\big(V_2\,\mathrm{SiLU}(V_1 v)\big)$$

    $W_1$ is (2C, C, 1, 1), $W_2$ (2C, 2C, k, k), $W_3$ (C, 2C, 1, 1). The gate g depends only on a learned vector v
    with 2C entries, so the block is linear. The residuals exist if the geometry has an identity, the outer one only if
    the channels match.

    Source: Y. Wang et al., "PlainUSR: Chasing Faster ConvNet for Efficient Super-Resolution", ACCV 2024, arXiv
    2409.13435; class MBConv of the authors' code, which has 3x3 kernels only and cannot be fused for expansions other
    than 2. They pad e with its bias; padding x first, as here, is equivalent. v starts at 0.1 and $V_1$, $V_2$ at 1 as
    in their code, which makes the gate close to 1.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of the middle per input channel.
        gate_reduction: channels of the middle per row of $V_1$.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> block = RepMBConvBlock(4)
        >>> x = torch.rand(1, 4, 7, 7)
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: int = 2
    gate_reduction: int = 4

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The chain and the outer residual."""
        chain = partial(_gated_path, expansion=self.expansion, reduction=self.gate_reduction)
        return [chain, *identities(spec)]


class LearnedGate(nn.Module):
    r"""y = g x, g = sigmoid(V_2 SiLU(V_1 v)) per channel, for a learned v of shape (1, C, 1, ...)."""

    drawn_as = "gate"

    def __init__(self, channels: int, ndim: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.vector = nn.Parameter(torch.full((1, channels, *(1,) * ndim), 0.1))
        self.reduce = nn.Linear(channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, channels, bias=False)
        nn.init.ones_(self.reduce.weight)
        nn.init.ones_(self.expand.weight)

    def gate(self) -> Tensor:
        """g, of shape (C,)."""
        return self.expand(F.silu(self.reduce(self.vector.flatten()))).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale x of shape (N, C, *size)."""
        return linear_op(self, x.shape[1], x).apply(x)


@linear_op.register
def _(module: LearnedGate, channels: int, like: Tensor) -> LinearOp:
    return per_channel(module.gate(), module.vector.dim() - 2)


def _gated(spec: ConvSpec, reduction: int) -> Branch:
    return SequentialBranch(spec, spec.new_conv(), LearnedGate(spec.out_channels, spec.ndim, reduction))


def _gated_path(spec: ConvSpec, expansion: int, reduction: int) -> Branch:
    wide = expansion * spec.in_channels
    middle = spec.unpadded(in_channels=wide, out_channels=wide, bias=True)
    inner = ReparamBlock(middle, [partial(_gated, reduction=reduction), *identities(middle)])
    expand, reduce = (spec.pointwise(**{end: wide}, bias=True) for end in ("out_channels", "in_channels"))
    return SequentialBranch(spec, expand.new_conv(), inner, reduce.new_conv())
