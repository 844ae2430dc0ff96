"""The branch of low-rank adaptation."""

from __future__ import annotations

import operator

from torch import nn

from ..algebra._spec import ConvSpec
from ..errors import SpecError
from ._chain import ChainBranch
from ._stages import ChannelScale


class LoRABranch(ChainBranch):
    r"""The term that low-rank adaptation adds to a convolution: y = (alpha / rank) B (A * x).

    A is (rank, in_channels, *size) and has the taps of the spec; B is (out_channels, rank, 1, ...). With groups, each
    group has its own `rank` channels. B starts at zero, so adding the branch does not change what a block computes. The
    kernel of a convolution with this branch is $W_0 + \frac{\alpha}{r} B A$.

    Source: E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, eq. 3,
    with the taps in A as in PEFT and LyCORIS. loralib, and with it X. Chai et al., "Distillation-Supervised
    Convolutional Low-Rank Adaptation for Efficient Image Super-Resolution" (DSCLoRA), CVPRW 2025, arXiv 2504.11271,
    reshape the product of an (out k, rank k) and a (rank k, in k) matrix to the kernel: another family of kernels.

    Args:
        spec: the geometry.
        rank: channels between A and B, per group.
        alpha: numerator of the factor alpha / rank, which is a buffer; None means the rank.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a rank below one.

    Example:
        >>> import torch
        >>> branch = LoRABranch(ConvSpec(16), rank=4, alpha=8.0)
        >>> branch.down.weight.shape == (4, 16, 3, 3) and branch.up.weight.shape == (16, 4, 1, 1)
        True
        >>> bool(branch(torch.rand(1, 16, 7, 9)).any())
        False
    """

    def __init__(self, spec: ConvSpec, *, rank: int = 4, alpha: float | None = None) -> None:
        super().__init__(spec)
        if isinstance(rank, bool) or operator.index(rank) < 1:
            raise SpecError(f"a low-rank branch needs a rank of at least 1, but got rank={rank!r}")
        channels = rank * spec.groups
        self.down = spec.unpadded(out_channels=channels, bias=False).new_conv()
        self.up = spec.pointwise(in_channels=channels, bias=False).new_conv()
        nn.init.zeros_(self.up.weight)
        factor = 1.0 if alpha is None else alpha / rank
        self.scale = ChannelScale(spec.out_channels, spec.ndim, start=factor, shared=True, learned=False)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.down, self.up, self.scale]
