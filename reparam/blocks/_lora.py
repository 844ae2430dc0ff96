"""LoRA: a convolution and its low-rank adaptation."""

from __future__ import annotations

from functools import partial

from ..algebra._spec import ConvSpec
from ..branches import ConvBranch, LoRABranch
from ._block import BranchFactory
from ._conv_block import ConvBlock


class LoRABlock(ConvBlock):
    r"""A convolution with a parallel low-rank branch, equal to one k x k convolution.

    $$y = W_0 * x + b + \tfrac{\alpha}{r} B (A * x)$$

    B is zero at first. `swap_convs(net, LoRABlock)` replaces the convolutions of a trained network by this block, with
    their weights as $W_0$ and b. To train A and B only, call `requires_grad_(False)` on the first branch of each block.

    Source: as `LoRABranch`.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        rank: r, channels between A and B, per group.
        alpha: $\alpha$; None means r.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or a rank below one.

    Example:
        >>> import torch
        >>> from reparam import fuse, swap_convs
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> weight = net[0].weight.detach()
        >>> _ = swap_convs(net, LoRABlock)
        >>> torch.allclose(net[0].branches[0].conv.weight, weight), torch.allclose(fuse(net)[0].weight, weight)
        (True, True)
    """

    rank: int = 4
    alpha: float | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The convolution and the low-rank branch."""
        return [ConvBranch, partial(LoRABranch, rank=self.rank, alpha=self.alpha)]
