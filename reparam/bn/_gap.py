"""How far the stored statistics of batch norm are from those of given images: the health check of a training."""

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
    """One batch norm: its stored statistics against those of the images; see `bn_gap` for the definitions."""

    name: str
    """Dotted name."""
    shift: float
    """Mean over channels of the shift d; 0 is perfect."""
    worst_shift: float
    """The largest d of a channel."""
    ratio: float
    """Typical factor between the variances, exp(mean |ln r|); 1 is perfect, and it is never below."""
    worst_ratio: float
    """The r of the channel whose |ln r| is largest: above 1 if the images vary more than is stored, else below."""


@dataclass(frozen=True)
class BNGapReport:
    """The result of `bn_gap`; printed, it is a table."""

    layers: tuple[BNGap, ...]
    """In the order in which the model holds them; empty for a model without batch norm."""

    @property
    def shift(self) -> float:
        """Mean of the layers' shifts; 0 without layers."""
        return sum(layer.shift for layer in self.layers) / max(1, len(self.layers))

    @property
    def worst(self) -> BNGap | None:
        """The layer with the largest shift of a channel, NaN before all; None without layers."""
        return max(self.layers, key=lambda layer: (math.isnan(layer.worst_shift), layer.worst_shift), default=None)

    def __str__(self) -> str:
        if not self.layers:
            return "no batch norm"
        titles = ("shift", "worst shift", "ratio", "worst ratio")
        return table({"batch norm": "", **dict.fromkeys(titles, ".3g")}, map(astuple, self.layers))


def bn_gap(model: nn.Module, images: Tensor | Iterable[Any]) -> BNGapReport:
    r"""Measures, per batch norm, how far its stored statistics are from those of the images.

    With m and v the mean and the unbiased variance of a channel of what reaches the batch norm, over all images and
    positions, and $\mu$, $\sigma^2$ its running statistics,

    $$d = \frac{|m - \mu|}{\sqrt{\sigma^2 + \epsilon}}, \qquad r = \frac{v + \epsilon}{\sigma^2 + \epsilon}.$$

    d is in units of the stored deviation, r a pure number. The model runs in eval mode with its stored statistics, so
    that each layer is judged on what it gets in use; afterwards everything is as it was. Folded blocks run no branch:
    there m and v follow from the moments of the patches of the input. On images like those of the training, a large
    gap says that eval mode computes another function than the training does, which shows as artefacts in smooth areas
    and as a validation curve that explodes: freeze the statistics, or recalibrate them.

    Source of the reason: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671, on the mismatch of
    statistics in training and in use. The measures are ours.

    Args:
        model: any module, in any mode, frozen or not.
        images: one batch, a tensor (N, ...), or several: tensors, or tuples or lists whose first element is one.

    Returns:
        A row for each batch norm that keeps running statistics.

    Raises:
        StatisticsError: if there are no images, they do not lead through a batch norm, or one may compute something
            else than batch norm, by a class or a forward of its own.

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
                f"cannot measure the gap of batch norm {name!r}: {used} batches gave it {population.count} values per "
                "channel, and it needs two or more"
            )
        mean, var = population.mean_var()
        stored_mean = in_float64(bn.running_mean)  # type: ignore[arg-type]  # those without were left out
        stored_var = in_float64(bn.running_var) + bn.eps  # type: ignore[arg-type]  # likewise
        shift = (mean - stored_mean).abs() / stored_var.sqrt()
        log_ratio = ((var + bn.eps) / stored_var).log()
        worst = log_ratio[log_ratio.abs().argmax()]
        numbers = (shift.mean(), shift.max(), log_ratio.abs().mean().exp(), worst.exp())
        layers.append(BNGap(name, *(float(number) for number in numbers)))
    return BNGapReport(tuple(layers))
