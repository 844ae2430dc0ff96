"""Update the running statistics of batch norms as torch does, for many norms in few operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ..errors import StatisticsError

Moved = tuple[_NormBase, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A batch norm, its running mean and variance, and the mean and variance of its batch."""


@torch.no_grad()
def move_running_stats(
    bns: Sequence[_NormBase], mean: Tensor, var: Tensor, count: int | Tensor, biased: bool = True
) -> None:
    """Update the running statistics of batch norms side by side as torch's BatchNorm does.

    Args:
        bns: the batch norms.
        mean: mean of the batch.
        var: variance of the batch.
        count: number of values per channel in the batch; a tensor if only the device knows it.
        biased: whether `var` is divided by the count, or else by the count minus one.

    Raises:
        StatisticsError: for a single value per channel.
    """
    if not any(map(_keeps, bns)):
        return
    if not isinstance(count, Tensor) and count == 1:
        raise StatisticsError(
            "batch statistics need more than one value per channel in training, but got 1; use larger batches or images"
        )
    counters = [bn.num_batches_tracked for bn in bns if _keeps(bn) and bn.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    if not isinstance(count, Tensor) and not count:  # an empty batch counts as a batch and changes nothing
        return
    _move(_moved(bns, mean, var * _unbiasing(count) if biased else var), count)


def _keeps(bn: _NormBase) -> bool:
    return bn.training and bn.track_running_stats and bn.running_mean is not None


def _unbiasing(count: int | Tensor) -> float | Tensor:
    """The factor from the biased variance of a batch to the unbiased one."""
    return count / (count - 1).clamp(min=1) if isinstance(count, Tensor) else count / (count - 1)


def _moved(bns: Sequence[_NormBase], mean: Tensor, var: Tensor) -> list[Moved]:
    widths = [bn.num_features for bn in bns]
    return [
        (bn, (bn.running_mean, bn.running_var), (its_mean, its_var))
        for bn, its_mean, its_var in zip(bns, mean.split(widths), var.split(widths))
        if _keeps(bn) and bn.running_mean is not None and bn.running_var is not None
    ]


def _move(moved: Sequence[Moved], count: int | Tensor) -> None:
    buffers = [buffer for _, both, _ in moved for buffer in both]
    values = [value.to(buffer.dtype) for _, both, new in moved for buffer, value in zip(both, new)]
    weights = [_weight(bn, both[0], count) for bn, both, _ in moved for _ in both]
    first = weights[0]
    if isinstance(first, float) and all(isinstance(weight, float) and weight == first for weight in weights):
        torch._foreach_lerp_(buffers, values, first)
    else:
        for buffer, value, weight in zip(buffers, values, weights):
            buffer.lerp_(value, weight)


def _weight(bn: _NormBase, like: Tensor, count: int | Tensor) -> float | Tensor:
    """The weight of a batch of `count` values in the update of running statistics; 0 for an empty batch."""
    weight: float | Tensor = 0.0 if bn.momentum is None else float(bn.momentum)
    if bn.momentum is None and bn.num_batches_tracked is not None:  # a cumulative average
        weight = 1.0 / bn.num_batches_tracked.to(like.dtype)
    return weight * (count > 0).to(like.dtype) if isinstance(count, Tensor) else weight
