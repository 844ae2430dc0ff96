"""What is in the zoo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from helpers import randomise
from torch import Tensor, nn


@dataclass(frozen=True)
class Animal:
    """One kind of module."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    """Of an example input."""
    fewest: int = 1
    """Weight layers (convolutions, linear layers, norms, pools in a sum) that it can become."""
    stays: bool = False
    """Whether part of it looks like branches, or a norm to take in, and must stay: exactness or the cost forbid."""

    def module(self, seed: int = 0) -> nn.Module:
        """With random weights and statistics, in float64 and in eval mode."""
        torch.manual_seed(seed)
        return randomise(self.make().double(), seed).eval()

    def example(self, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


IMAGE = (2, 8, 13, 11)
