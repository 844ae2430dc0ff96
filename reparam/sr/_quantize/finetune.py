"""Trains a fused network to return the same with weights of few bits."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

_RATE = 5e-4
"""Adam's learning rate at the start; it falls to zero along a cosine."""


class Rounded(nn.Module):
    """Rounds weights as integers hold them. Gradients pass as if nothing was rounded.

    Args:
        bits: bits of a weight; the range of the integers is symmetric around zero.
        per_channel: whether each output channel has its own scale.
    """

    def __init__(self, bits: int, per_channel: bool) -> None:
        super().__init__()
        self.levels, self.per_channel = 2 ** (bits - 1) - 1, per_channel

    def forward(self, weight: Tensor) -> Tensor:
        """Round the weights (O, I, h, w)."""
        sizes = weight.detach().abs().amax((1, 2, 3))
        sizes = sizes if self.per_channel else sizes.max().expand_as(sizes)
        steps = (sizes / self.levels).clamp(min=1e-12)  # any step does for channels that are all zero
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, steps, zeros, 0, -self.levels, self.levels)


@torch.inference_mode(False)  # lets gradients flow even if the caller is in inference mode
def finetuned(net: nn.Module, tiles: Sequence[Tensor], bits: int, per_channel: bool, steps: int) -> nn.Module:
    """A copy whose convolutions have weights of few bits, trained to return what the network returns.

    Args:
        net: the network, fused, in float32, in eval mode; it is not changed.
        tiles: inputs (N, C, H, W); each training step uses one of them.
        bits: bits of the weights.
        per_channel: whether each output channel of a weight has its own scale.
        steps: the number of training steps.

    Returns:
        The copy, in the same classes. Rounding its weights again changes nothing.
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
