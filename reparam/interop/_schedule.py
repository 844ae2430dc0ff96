"""When to freeze, told by the options of a training code, which count in units of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SpecError


def first_frozen_step(model: Any) -> float:
    """The first optimizer step, from 1, with frozen statistics; infinity without `freeze_bn_at`.

    Args:
        model: of a training code; its `opt` has sections that are mappings or objects.

    Raises:
        SpecError: for a `freeze_bn_at` that is no positive number, or a share of a total that is not told.
    """
    at = _asked(model)
    if at is None:
        return float("inf")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not at > 0:
        raise SpecError(f"freeze_bn_at must be a share of total_iter or an optimizer step, but got {at!r}")
    return at * _total(model, at) if at <= 1 else at


def optimizer_step(model: Any, iteration: int, rest: tuple[Any, ...]) -> int:
    """Which step of the optimizer, from 1, a batch belongs to.

    Args:
        model: as above.
        iteration: what its `optimize_parameters` is told: the batch (BasicSR, neosr, KAIR), from 1, or, of
            traiNNer-redux, the number of finished steps, with this one if the batch ends it.
        rest: what else it is told: by traiNNer-redux, at last, whether this batch ends a step.

    Raises:
        SpecError: for a code that accumulates gradients and does not count as one of these.
    """
    if rest and isinstance(rest[-1], bool):
        return iteration + (not rest[-1])
    batches = getattr(model, "accum_iters", None) or 1
    if rest or (batches > 1 and _of(_of(model.opt, "logger"), "total_iter") is None):
        raise SpecError(
            f"freeze_bn_at counts optimizer steps, but {_code(model)} accumulates "
            f"(accum_iters={batches}, {1 + len(rest)} arguments) as no code that is known does, so that its iteration "
            "may be a batch or a step; freeze with BNFreezeSchedule in its loop"
        )
    return -(-iteration // batches)


def _asked(model: Any) -> Any:
    """`freeze_bn_at`, under `train`, or under `network_g` where a code refuses fields that it does not know."""
    found = {place: _of(_of(model.opt, place), "freeze_bn_at") for place in ("train", "network_g")}
    told = {place: at for place, at in found.items() if at is not None}
    if len({*told.values()}) > 1:
        raise SpecError(
            f"freeze_bn_at is {told['train']!r} under train, but {told['network_g']!r} under network_g; leave one out"
        )
    return next(iter(told.values()), None)


def _total(model: Any, at: float) -> float:
    """Optimizer steps in all: neosr has them under `logger`, others under `train`."""
    found = {place: _of(_of(model.opt, place), "total_iter") for place in ("logger", "train")}
    told = {place: total for place, total in found.items() if total is not None}
    if len({*told.values()}) == 1:
        return next(iter(told.values()))
    what = " and ".join(f"{total} under {place}" for place, total in told.items()) or "no total_iter"
    raise SpecError(
        f"freeze_bn_at={at} is a share of total_iter, but the options of {_code(model)} have {what}; give freeze_bn_at "
        "as the number of an optimizer step"
    )


def _of(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


def _code(model: Any) -> str:
    return f"{type(model).__name__} of {type(model).__module__}"
