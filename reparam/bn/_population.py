"""Pooled statistics of many batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics._precision import in_float64


class Population:
    """Mean and variance of all values seen so far, pooled exactly (Chan, Golub, LeVeque, 1979) in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.sum_squares: Tensor | float = 0.0  # sum of squared deviations from the mean

    def add(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Add a batch of `count` values per channel with this mean and biased variance."""
        if not count:
            return
        delta = in_float64(mean) - self.mean
        total = self.count + count
        self.sum_squares = self.sum_squares + in_float64(var) * count + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def mean_var(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance per channel, in float64; needs at least two values."""
        return torch.as_tensor(self.mean), torch.as_tensor(self.sum_squares) / (self.count - 1)
