"""Measure how far the stored statistics of batch norm are from those of given images: a health check of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor, nn

from .._tables import table
from ..errors import StatisticsError
from ..numerics._precision import in_float64
from ._freeze import collect_bn_stats, known_norms


@dataclass(frozen=True)
class BNGap:
    """The gap of one batch norm between its stored statistics and those of the images; `bn_gap` defines the terms."""

    name: str
    """Dotted name of the batch norm."""
    shift: float
    """Mean over channels of the shift d; 0 means no gap."""
    worst_shift: float
    """The largest d of any channel."""
    ratio: float
    """Typical factor between the variances, exp(mean |ln r|), at least 1; 1 means no gap."""
    worst_ratio: float
    """The r of the channel whose |ln r| is largest; above 1 if the images vary more than the stored variance."""


@dataclass(frozen=True)
class BNGapReport:
    """The result of `bn_gap`; prints as a table."""

    layers: tuple[BNGap, ...]
    """The gap of each batch norm, in the order of the model; empty for a model without batch norm."""

    @property
    def shift(self) -> float:
        """Mean of the layers' shifts; 0 if there are no layers."""
        return sum(layer.shift for layer in self.layers) / max(1, len(self.layers))

    @property
    def worst(self) -> BNGap | None:
        """The layer with the largest shift of a channel (NaN counts as largest); None if there are no layers."""
        return max(self.layers, key=lambda layer: (math.isnan(layer.worst_shift), layer.worst_shift), default=None)

    def __str__(self) -> str:
        if not self.layers:
            return "no batch norm"
        titles = ("shift", "worst shift", "ratio", "worst ratio")
        return table({"batch norm": "", **dict.fromkeys(titles, ".3g")}, map(astuple, self.layers))


def bn_gap(model: nn.Module, images: Tensor | Iterable[Any]) -> BNGapReport:
    r"""Measure, for each batch norm, how far its stored statistics are from those of the images.

    $$d = \frac{|m - \mu|}{\sqrt{\sigma^2 + \epsilon}}, \qquad r = \frac{v + \epsilon}{\sigma^2 + \epsilon}.$$

    m and v are the mean and the unbiased variance of one channel of the batch norm's input, over all images and
    positions; $\mu$ and $\sigma^2$ are its running statistics. d is in units of the stored standard deviation, r is a
    ratio.

    A large gap on images like those of the training means that eval mode computes another function than training does.
    It shows as artifacts in smooth areas and as a validation curve that explodes. The remedy is to freeze or to
    recalibrate the statistics.

    The model runs in eval mode with its stored statistics, so each layer gets the input that it gets in use. Afterwards
    every module has its former mode. In a folded block no branch runs; there m and v follow from the moments of the
    input's patches.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671, describes the mismatch between training
    and inference statistics. The measures d and r are ours.

    Args:
        model: any module, in any mode, frozen or not.
        images: one batch as a tensor (N, ...), or several: tensors, or tuples or lists whose first element is one.

    Returns:
        A row for each batch norm that keeps running statistics.

    Raises:
        StatisticsError: if there are no images, if a batch norm is not reached, or if one may compute something other
            than batch norm because it has its own class or forward.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> bn = nn.BatchNorm2d(2)
        >>> x = torch.randn(8, 2, 9, 9) * 3 + 1
        >>> report = bn_gap(nn.Sequential(bn), x)
        >>> round(report.layers[0].shift) == 1 and 8 < report.layers[0].ratio < 10
        True
    """
    batches = [images] if isinstance(images, Tensor) else images
    found = [(name, bn) for name, bn in known_norms(model, "measure the gap of") if bn.running_mean is not None]
    used, populations = collect_bn_stats(model, found, batches, passive=True)
    layers = []
    for (name, bn), population in zip(found, populations):
        if population.count < 2:
            raise StatisticsError(
                f"cannot measure the gap of batch norm {name!r}: it got {population.count} values per channel from "
                f"{used} batches, and needs at least two"
            )
        mean, var = population.mean_var()
        stored_mean = in_float64(bn.running_mean)  # type: ignore[arg-type]  # those without statistics were left out
        stored_var = in_float64(bn.running_var) + bn.eps  # type: ignore[arg-type]  # likewise
        shift = (mean - stored_mean).abs() / stored_var.sqrt()
        log_ratio = ((var + bn.eps) / stored_var).log()
        worst = log_ratio[log_ratio.abs().argmax()]
        numbers = (shift.mean(), shift.max(), log_ratio.abs().mean().exp(), worst.exp())
        layers.append(BNGap(name, *(float(number) for number in numbers)))
    return BNGapReport(tuple(layers))
