r"""Batch norm as this library sees it: a per-channel scale and shift that follow from a mean and a variance.

$$\mathrm{BN}(z) = \gamma \frac{z - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = s z + t,\qquad
  s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}},\quad t = \beta - s \mu$$
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from .errors import SpecError, StatisticsError

BatchNorm = _NormBase
"""What the functions here take: any torch `_BatchNorm` (1d, 2d, 3d, Sync, timm's with activation) or a frozen one."""

_CLASS: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

NormChoice = bool | Callable[[int], nn.Module]
"""False: none. True: torch's BatchNorm. A callable: takes the channel count and returns a BatchNorm."""


class FrozenStatsBN(_NormBase):
    r"""Batch norm that normalises with its stored statistics in training too, while its affine goes on learning.

    $$y = \gamma \frac{x - \mu_{stored}}{\sqrt{\sigma^2_{stored} + \epsilon}} + \beta$$

    $\gamma$ and $\beta$ are Parameters; the statistics never change. The state-dict keys are BatchNorm's. Modules that
    a norm with an activation carries (timm's BatchNormAct2d: `drop`, `act`) run after it, as they did before.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR: Training Efficient VGG-style Super-Resolution Networks with Structural
    Re-Parameterization and Batch Normalization", ACM MM 2022, arXiv 2205.05671: statistics of mini-batches first,
    population statistics in the later part of training. torchvision's, detectron2's and timm's frozen layers differ:
    they freeze the affine as well.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: kept for the day the statistics are unfrozen; unused here.
        affine: whether there are $\gamma$ and $\beta$.

    Shape:
        (N, C, *) to the same shape.

    Example:
        >>> bn = FrozenStatsBN(4).train()
        >>> x = torch.randn(2, 4, 5, 5)
        >>> torch.allclose(bn(x), x / (1 + bn.eps) ** 0.5)
        True
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x of shape (N, C, *) with the stored statistics, whatever the mode."""
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        for following in self.children():
            x = following(x)
        return x


class Population:
    """Mean and variance of all that was seen, pooled exactly (Chan, Golub, LeVeque, 1979) in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.sum_squares: Tensor | float = 0.0  # of the deviations from the mean

    def add(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Takes in a batch with this mean and biased variance per channel, of `count` values each."""
        delta = mean.double() - self.mean
        total = self.count + count
        self.sum_squares = self.sum_squares + var.double() * count + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


class PopulationBN(_NormBase):
    """What every batch norm becomes while it is recalibrated: it uses batch statistics and collects them."""

    population: Population

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x of shape (N, C, *) with its own statistics."""
        self.population.add(*batch_moments(x))
        x = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        for following in self.children():
            x = following(x)
        return x


def make_norm(choice: NormChoice, channels: int, ndim: int) -> BatchNorm | None:
    """The norm that an argument `bn` asks for, or None."""
    if choice is False:
        return None
    norm = _CLASS[ndim](channels) if choice is True else choice(channels)
    if not is_norm(norm):
        raise SpecError(f"bn must make a batch norm, but {choice!r} made a {type(norm).__name__}")
    return norm


def is_norm(module: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether `module` is a batch norm, frozen or not."""
    return isinstance(module, (_BatchNorm, FrozenStatsBN, PopulationBN))


def norms(model: nn.Module) -> Iterator[tuple[str, BatchNorm]]:
    """The batch norms of a model with their dotted names, each once."""
    for name, module in model.named_modules():
        if is_norm(module):
            yield name, module


def uses_batch_stats(bn: BatchNorm) -> bool:
    """Whether the next forward normalises with the statistics of its own batch."""
    if isinstance(bn, (FrozenStatsBN, PopulationBN)):
        return isinstance(bn, PopulationBN)
    return bn.training or bn.running_mean is None


def why_not_ready(bn: BatchNorm) -> str | None:
    """Why the stored statistics of `bn` do not yet define a function that could be fused, or None if they do."""
    if bn.running_mean is None:
        return "it keeps no running statistics (track_running_stats=False), so it has no kernel"
    if isinstance(bn, FrozenStatsBN):
        return None
    if bn.training:
        return "it uses batch statistics (train mode): call model.eval() or freeze_bn_stats(model) first"
    return why_unseen(bn)


def why_unseen(bn: BatchNorm) -> str | None:
    """Why the stored statistics of `bn` are still those it was built with, or None if it saw a batch."""
    seen = bn.num_batches_tracked
    if seen is None or seen.is_meta or int(seen) > 0:
        return None
    return (
        "it never saw a batch (num_batches_tracked=0): train it, call recalibrate_bn_stats(model, batches), or, if "
        "this is an EMA copy, copy the buffers as well as the parameters"
    )


def scale_shift(bn: BatchNorm, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Scale s and shift t, both (C,), of a batch norm with these statistics."""
    scale = torch.rsqrt(var + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def stored_scale_shift(bn: BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm with its stored statistics.

    Raises:
        StatisticsError: if the batch norm uses batch statistics, so that it is no fixed scale and shift.
    """
    if uses_batch_stats(bn):
        raise StatisticsError(
            "asked for the kernel of a batch norm that uses batch statistics; it is a fixed scale and shift only in "
            "eval mode or with frozen statistics: call .eval() or freeze_bn_stats(model)"
        )
    return scale_shift(bn, bn.running_mean, bn.running_var)  # type: ignore[arg-type]  # not None, as checked above


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance per channel of x (N, C, *), and the number of values they come from."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    var, mean = torch.var_mean(x, dim=axes, correction=0)
    return mean, var, x.numel() // x.shape[1]


@torch.no_grad()
def update_running_stats(bn: BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics as torch's BatchNorm does, given the batch's mean and biased variance."""
    if isinstance(bn, PopulationBN):
        bn.population.add(mean, var, count)
        return
    if not (bn.training and bn.track_running_stats) or bn.running_mean is None or bn.running_var is None:
        return
    if count < 2:
        raise StatisticsError(f"batch statistics need more than one value per channel in training, but got {count}")
    weight: float | Tensor = 0.0 if bn.momentum is None else bn.momentum
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:  # a cumulative average
            weight = 1.0 / bn.num_batches_tracked.to(bn.running_mean.dtype)
    for buffer, value in ((bn.running_mean, mean), (bn.running_var, var * (count / (count - 1)))):
        buffer.mul_(1 - weight).add_(value.to(buffer.dtype) * weight)
