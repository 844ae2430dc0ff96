"""Train all branches at the cost of one convolution, batch statistics included."""

from .moments import PatchMoments, patch_moments

__all__ = [
    "PatchMoments",
    "patch_moments",
]
