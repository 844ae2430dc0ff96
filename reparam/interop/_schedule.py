"""When to freeze, from the options of a training codebase, which counts steps in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SpecError


def first_frozen_step(model: Any) -> float:
    """The first optimizer step, counted from 1, with frozen statistics; infinity without `freeze_bn_at`.

    Args:
        model: a model of a training codebase; the sections of its `opt` are mappings or objects.

    Raises:
        SpecError: if `freeze_bn_at` is not a positive number, or is a share of an unknown total.
    """
    at = _asked(model)
    if at is None:
        return float("inf")
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not at > 0:
        raise SpecError(f"freeze_bn_at must be a share of total_iter or an optimizer step, but got {at!r}")
    return at * _total(model, at) if at <= 1 else at


def optimizer_step(model: Any, iteration: int, rest: tuple[Any, ...]) -> int:
    """The optimizer step, counted from 1, that a batch belongs to.

    Args:
        model: as above.
        iteration: the argument of its `optimize_parameters`. In BasicSR, neosr and KAIR, it is the number of the batch,
            from 1. In traiNNer-redux it is the number of finished steps, including this one if the batch ends it.
        rest: its other arguments. In traiNNer-redux the last one is whether this batch ends a step.

    Raises:
        SpecError: if the codebase accumulates gradients and counts in another way than these.
    """
    if rest and isinstance(rest[-1], bool):
        return iteration + (not rest[-1])
    batches = getattr(model, "accum_iters", None) or 1
    if rest or (batches > 1 and _of(_of(model.opt, "logger"), "total_iter") is None):
        raise SpecError(
            f"freeze_bn_at counts optimizer steps, but {_code(model)} accumulates gradients "
            f"(accum_iters={batches}, {1 + len(rest)} arguments) in a way that is not known here, so its iteration "
            "may count batches or steps; use BNFreezeSchedule in its loop instead"
        )
    return -(-iteration // batches)


def _asked(model: Any) -> Any:
    """`freeze_bn_at` under `train`, or under `network_g` for codebases that refuse unknown fields under `train`."""
    found = {place: _of(_of(model.opt, place), "freeze_bn_at") for place in ("train", "network_g")}
    told = {place: at for place, at in found.items() if at is not None}
    if len({*told.values()}) > 1:
        raise SpecError(
            f"freeze_bn_at is {told['train']!r} under train, but {told['network_g']!r} under network_g; leave one out"
        )
    return next(iter(told.values()), None)


def _total(model: Any, at: float) -> float:
    """The total number of optimizer steps: neosr has it under `logger`, others under `train`."""
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
