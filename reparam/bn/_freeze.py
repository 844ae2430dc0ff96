"""Freezing, unfreezing and re-estimating the statistics of every batch norm of a model."""

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
    """Stops the statistics of every batch norm of `model` from changing, and uses them in training too.

    In place, and each layer stays the same object with the same Parameters: an optimizer, DDP, hooks and an EMA made
    before go on as they are, and `weight` and `bias` keep learning. RepSR does this for about the last tenth of the
    training. A layer is turned into a `FrozenStatsBN` by setting its class, because every other way (a new module in
    its place) would lose the references that others hold to it; the class derives from the one that it was of, so that
    code which looks for `nn.BatchNorm2d`, to make groups of parameters or the like, finds what it found before. The
    metadata of the state dict says what is frozen: see `BNFreezeSchedule`. Freezing twice changes nothing.

    Source: Wang, Dong, Shan, "RepSR", ACM MM 2022, arXiv 2205.05671.

    Args:
        model: any module; batch norms inside and outside of blocks are meant, 1d, 2d, 3d, Sync and timm's.

    Returns:
        The dotted names of all frozen batch norms.

    Raises:
        StatisticsError: if a batch norm never saw a batch, keeps no statistics, or may compute something else than
            batch norm, by a class or a forward of its own; nothing is changed then.

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
    """The batch norms of a model, all of which a change of class leaves what they are.

    Args:
        model: any module.
        what: is to be done with them, for the error.

    Raises:
        StatisticsError: if one may compute something else than batch norm; it is named.
    """
    found = list(norms(model))
    for name, bn in found:
        if why := why_unknown(bn):
            raise StatisticsError(
                f"cannot {what} batch norm {name!r}: {why}; make it plain, or leave this model as it is"
            )
    return found


def unfreeze_bn_stats(model: nn.Module) -> list[str]:
    """Undoes `freeze_bn_stats`: every layer is of its former class again and follows its mode.

    Layers that were built as `FrozenStatsBN` stay what they are.

    Returns:
        The dotted names of the batch norms that were unfrozen.

    Raises:
        StatisticsError: if the class of a batch norm was changed after it was frozen; nothing is changed then.
    """
    found = [
        (name, bn) for name, bn in norms(model) if isinstance(bn, FrozenStatsBN) and kind_before(bn) is not type(bn)
    ]
    for name, bn in found:
        if type(bn) is not frozen_class(kind_before(bn)):
            raise StatisticsError(
                f"cannot unfreeze batch norm {name!r}: its class became {type(bn).__name__} after it was frozen, as "
                "fully_shard and parametrizations make it; undo that first, or unfreeze before it"
            )
    for _, bn in found:
        bn.__class__ = kind_before(bn)
    return [name for name, _ in found]


@contextmanager
def _collecting(bn: BatchNorm, passive: bool) -> Iterator[Population]:
    """While it lasts, `bn` uses batch statistics and the population yielded here collects them; `passive`, it collects
    them but goes on with its stored ones."""
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
    """Runs the model in eval mode on `batches`, and returns their number and what each batch norm saw."""
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
    """Raises a StatisticsError if a batch norm saw too little for a variance."""
    for (name, _), population in zip(found, populations):
        if population.count < 2:
            raise StatisticsError(
                f"cannot {what} batch norm {name!r}: {used} batches gave it {population.count} values per channel, "
                f"and it needs two or more{then}"
            )


@torch.no_grad()
def recalibrate_bn_stats(model: nn.Module, batches: Iterable[Any]) -> int:
    """Re-estimates the statistics of every batch norm from `batches`, as the statistics of the whole population.

    All values of all batches are pooled with equal weight (an average of per-batch variances would be biased by the
    batch size). While it runs, batch norms use batch statistics and everything else is in eval mode; afterwards every
    mode is as it was, whatever happened.

    Args:
        model: any module; frozen batch norms get new statistics too and stay frozen.
        batches: inputs for `model`: a tensor, or a tuple or list whose first element is one, as a DataLoader gives.

    Returns:
        The number of batches used.

    Raises:
        StatisticsError: if `batches` is empty, a batch norm was not reached, or one may compute something else than
            batch norm, by a class or a forward of its own; the statistics are as before then.
    """
    found = [(name, bn) for name, bn in known_norms(model, "recalibrate") if bn.running_mean is not None]
    used, populations = collect_bn_stats(model, found, batches)
    refuse_few(found, populations, used, "recalibrate", "; the statistics were left as they were")
    for (_, bn), population in zip(found, populations):
        mean, var = population.mean_var()
        bn.running_mean.copy_(mean)  # type: ignore[union-attr]  # those without were left out
        bn.running_var.copy_(var)  # type: ignore[union-attr]  # likewise
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(used)
    return used
