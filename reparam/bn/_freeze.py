"""Freeze, unfreeze and re-estimate the statistics of every batch norm of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import StatisticsError
from ._frozen import FrozenStatsBN, frozen_class, kind_before, make_frozen
from ._known_norm import why_unknown
from ._norm import BatchNorm, PopulationBN, norms, why_unseen
from ._population import Population


def freeze_bn_stats(model: nn.Module) -> list[str]:
    """Freeze the statistics of every batch norm of `model`: stop updating them, and use them in training too.

    The model is changed in place, and `weight` and `bias` keep learning. RepSR does this for about the last tenth of
    the training. Each layer stays the same object with the same Parameters, so an optimizer, DDP, hooks and an EMA that
    were created earlier keep working. Freezing twice changes nothing. The metadata of the state dict records what is
    frozen; see `BNFreezeSchedule`.

    A layer becomes a `FrozenStatsBN` by a change of its class; a new module in its place would break the references
    that others hold to it. The new class derives from the old one. So code that looks for `nn.BatchNorm2d`, for example
    to build parameter groups, still finds the layer.

    Source: Wang, Dong, Shan, "RepSR", ACM MM 2022, arXiv 2205.05671.

    Args:
        model: any module. Batch norms inside and outside blocks are frozen: 1d, 2d, 3d, Sync and timm's.

    Returns:
        The dotted names of all frozen batch norms.

    Raises:
        StatisticsError: if a batch norm never saw a batch, keeps no running statistics, or may compute something other
            than batch norm because it has its own class or forward. Then nothing is changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> _ = net(torch.rand(2, 3, 9, 9))
        >>> freeze_bn_stats(net)
        ['1']
        >>> x = torch.rand(2, 3, 9, 9)
        >>> torch.equal(net.train()(x), net.eval()(x))
        True
    """
    found = known_norms(model, "freeze")
    for name, bn in found:
        if isinstance(bn, FrozenStatsBN):
            continue
        why = why_unseen(bn) if bn.running_mean is not None else "it keeps no running statistics"
        if why:
            raise StatisticsError(f"cannot freeze batch norm {name!r}: {why}")
    for _, bn in found:
        make_frozen(bn)
    return [name for name, _ in found]


def known_norms(model: nn.Module, what: str) -> list[tuple[str, BatchNorm]]:
    """The batch norms of a model, after a check that a change of class does not alter what they compute.

    Args:
        model: any module.
        what: a verb for the error message: what is to be done with them.

    Raises:
        StatisticsError: if one may compute something other than batch norm; it is named.
    """
    found = list(norms(model))
    for name, bn in found:
        if why := why_unknown(bn):
            raise StatisticsError(f"cannot {what} batch norm {name!r}: {why}; make it a plain batch norm first")
    return found


def unfreeze_bn_stats(model: nn.Module) -> list[str]:
    """Undo `freeze_bn_stats`: every layer gets its former class back and follows train and eval mode again.

    Layers that were built as `FrozenStatsBN` stay frozen.

    Returns:
        The dotted names of the batch norms that were unfrozen.

    Raises:
        StatisticsError: if the class of a batch norm changed after it was frozen. Then nothing is changed.
    """
    found = [
        (name, bn) for name, bn in norms(model) if isinstance(bn, FrozenStatsBN) and kind_before(bn) is not type(bn)
    ]
    for name, bn in found:
        if type(bn) is not frozen_class(kind_before(bn)):
            raise StatisticsError(
                f"cannot unfreeze batch norm {name!r}: its class became {type(bn).__name__} after it was frozen, for "
                "example by fully_shard or a parametrization; undo that first, or unfreeze before it"
            )
    for _, bn in found:
        bn.__class__ = kind_before(bn)
    return [name for name, _ in found]


@contextmanager
def _collecting(bn: BatchNorm, passive: bool) -> Iterator[Population]:
    """Collect the batch statistics of `bn` in the population that is yielded.

    Meanwhile `bn` normalizes with them, or, if `passive`, with its stored ones.
    """
    kind = type(bn)
    population = Population()
    bn.__class__ = PopulationBN
    bn.population, bn.passive = population, passive  # type: ignore[assignment]  # as above
    try:
        yield population
    finally:
        bn.__class__ = kind
        del bn.population, bn.passive


@torch.no_grad()
def collect_bn_stats(
    model: nn.Module, found: Sequence[tuple[str, BatchNorm]], batches: Iterable[Any], *, passive: bool = False
) -> tuple[int, list[Population]]:
    """Run the model in eval mode on `batches`; return their number and what each batch norm saw."""
    modes = {module: module.training for module in model.modules()}
    used = 0
    try:
        model.eval()
        with ExitStack() as stack:
            populations = [stack.enter_context(_collecting(bn, passive)) for _, bn in found]
            for batch in batches:
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
                used += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
    return used, populations


def refuse_few(
    found: Iterable[tuple[str, BatchNorm]], populations: Iterable[Population], used: int, what: str, then: str = ""
) -> None:
    """Raise a StatisticsError if a batch norm saw too few values for a variance."""
    for (name, _), population in zip(found, populations):
        if population.count < 2:
            raise StatisticsError(
                f"cannot {what} batch norm {name!r}: it got {population.count} values per channel from {used} batches, "
                f"and needs at least two{then}"
            )


@torch.no_grad()
def recalibrate_bn_stats(model: nn.Module, batches: Iterable[Any]) -> int:
    """Re-estimate the statistics of every batch norm from `batches`, as those of the whole population.

    All values of all batches are pooled with equal weight; an average of per-batch variances would be biased by the
    batch size. Meanwhile batch norms use batch statistics, and everything else is in eval mode. Afterwards every module
    has its former mode again, also after an error.

    Args:
        model: any module; frozen batch norms get new statistics too and stay frozen.
        batches: inputs for `model`, each a tensor, or a tuple or list whose first element is one, as from a DataLoader.

    Returns:
        The number of batches used.

    Raises:
        StatisticsError: if `batches` is empty, if a batch norm is not reached, or if one may compute something other
            than batch norm because it has its own class or forward. Then the statistics are unchanged.
    """
    found = [(name, bn) for name, bn in known_norms(model, "recalibrate") if bn.running_mean is not None]
    used, populations = collect_bn_stats(model, found, batches)
    refuse_few(found, populations, used, "recalibrate", "; the statistics are unchanged")
    for (_, bn), population in zip(found, populations):
        mean, var = population.mean_var()
        bn.running_mean.copy_(mean)  # type: ignore[union-attr]  # those without statistics were left out
        bn.running_var.copy_(var)  # type: ignore[union-attr]  # likewise
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(used)
    return used
