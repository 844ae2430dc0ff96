"""Kernels that are to be added to larger ones, and how: row by row, in higher precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Addend:
    """A kernel that is to be added to a larger one."""

    weight: Tensor
    scale: Tensor | None
    taps: tuple[Any, ...]
    """Where in the larger one."""
    depthwise: bool
    """Whether it has one filter per channel and the other has not."""

    def add_into(self, total: Tensor, first: int) -> None:
        """Adds its rows from `first` on to those of the larger kernel."""
        rows = slice(first, first + len(total))
        weight = product(self.weight[rows], None if self.scale is None else self.scale[rows], total.dtype)
        place = total[self.taps]
        if self.depthwise:
            self._add_to_diagonal(place, weight, first)
        else:
            place += weight

    def _add_to_diagonal(self, place: Tensor, weight: Tensor, first: int) -> None:
        """A filter of channel c goes to row c, and there to the channel that c is in its group."""
        if first + len(place) <= place.shape[1]:
            place.diagonal(first).add_(weight[:, 0].movedim(0, -1))
        else:
            row = torch.arange(len(place), device=place.device)
            place[row, (row + first) % place.shape[1]] += weight[:, 0]


def product(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    wide = weight.to(dtype)
    if scale is None:
        return wide
    scale = scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return wide * scale if wide is weight or wide.requires_grad else wide.mul_(scale)
