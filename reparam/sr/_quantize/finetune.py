"""A fused network that is taught to give the same with weights of few bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

_RATE = 5e-4
"""Of Adam at first; it falls to zero along a cosine."""


class Rounded(nn.Module):
    """Weights as integers hold them; gradients go through as if nothing were rounded.

    Args:
        bits: of a weight; the integers go to both sides of zero alike.
        per_channel: whether each output channel has its own scale.
    """

    def __init__(self, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.levels, self.per_channel = 2 ** (bits - 1) - 1, per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """The weights (O, I, h, w), rounded."""
        sizes = weight.detach().abs().amax((1, 2, 3))
        sizes = sizes if self.per_channel else sizes.max().expand_as(sizes)
        steps = (sizes / self.levels).clamp(min=1e-12)  # of channels that are all zero, any
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -self.levels, self.levels)


@torch.inference_mode(False)  # which lets gradients flow, wherever this is called
def finetuned(net: nn.Module, tiles: Sequence[Tensor], bits: int, per_channel: bool, steps: int) -> nn.Module:
    """A copy whose convolutions have weights of few bits, trained to give what the network gives.

    Args:
        net: fused, in float32, in eval mode; not changed.
        tiles: inputs (N, C, H, W), one of which is taken for a step.
        bits: of the weights.
        per_channel: whether each output channel of a weight has its own scale.
        steps: how many.

    Returns:
        The same classes; rounding the weights again changes nothing.
    """
    student = copy.deepcopy(net).requires_grad_()
    convs = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        parametrize.register_parametrization(conv, "weight", Rounded(bits, per_channel))
    optimizer = torch.optim.Adam(student.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for index in torch.randint(len(tiles), (steps,), generator=torch.Generator().manual_seed(0)).tolist():
        with torch.no_grad():
            wanted = net(tiles[index])
        optimizer.zero_grad()
        F.l1_loss(student(tiles[index]), wanted).backward()
        optimizer.step()
        schedule.step()
    for conv in convs:
        parametrize.remove_parametrizations(conv, "weight")
    return student.requires_grad_(False)
