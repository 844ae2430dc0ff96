"""Prove a fused model by running it and the original in float64 on one input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FuseError
from ..modules._hooks import copy_module
from ..numerics._compare import cloned, distance, exactly, max_abs, tensors_of
from ..numerics._running import of_dtype, run_in

_EXACT = 1e-9
"""The allowed difference of two float64 outputs, relative to the largest value; reordered sums differ by some 1e-15."""
OF_FLOAT32 = 2.0**-29
"""The rounding error of float64 relative to that of float32: it has 29 more binary digits."""
_SLACK = 1e3
"""The allowed difference where values nearly cancel, relative to the rounding error of float64."""
_SAME = 1e-12
"""The allowed difference of two float64 computations of one kernel, relative to its largest value."""

Spans = Mapping[str, set[str]]
"""For each module whose output differs, by dotted name: the modules after which values are equal again."""
Inputs = tuple[Sequence[Any], Mapping[str, Any]]


class CannotRunError(FuseError):
    """A model that does not run in float64 on the example, so nothing can be proved."""


def inputs_of(example: Any) -> Inputs:
    """The arguments of one forward: a tuple is positional, a dict is by keyword, anything else is the only argument."""
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def prove(model: nn.Module, fused: nn.Module, example: Any, spans: Spans) -> None:
    """Run a model and its fused form in float64, and compare the outputs.

    Args:
        model: a copy of the user's model, in float64 and eval mode.
        fused: its fused form, computed in float64 and not rounded.
        example: see `inputs_of`.
        spans: where values may differ and become equal again, because a layer took over the norm next to it.

    Raises:
        CannotRunError: if the model itself fails, or returns no values.
        FuseError: if the two differ; the message names the first part whose output differs.
    """
    inputs = inputs_of(example)
    try:
        wanted = run_in(torch.float64, model, *inputs)
    except Exception as error:  # a forward may raise anything
        raise CannotRunError(f"cannot prove it: in float64, the model itself fails on the example: {error}") from error
    numbers = [tensors[0] for _, tensors in tensors_of(wanted)]
    if not numbers or any(bool(x.is_meta or x.isnan().any()) for x in numbers):
        what = "NaN, or tensors without values (meta)," if numbers else "no tensor"
        raise CannotRunError(f"cannot prove it: on the example, the model itself returns {what} in float64")
    if why := _failure(model, fused, inputs, wanted):
        name = _first_that_differs(model, fused, inputs, spans)
        kind = type(model.get_submodule(name)).__name__
        where = f"part {name!r} ({kind})" if name else f"the model itself ({kind})"
        advice = f"skip={name!r} leaves it unchanged" if name else "skip= leaves parts unchanged"
        raise FuseError(f"cannot fuse the model: {where} would compute something else; {why}. {advice}")


def _failure(model: nn.Module, fused: nn.Module, inputs: Inputs, wanted: Any) -> str | None:
    """What is wrong with a fused model, or None."""
    try:
        got = run_in(torch.float64, fused, *inputs)
    except Exception as error:
        return f"it fails: {error}"
    if _differ(wanted, got) is None:
        return None
    rounded = run_in(torch.float32, of_dtype(torch.float32, copy_module(model)), *inputs)
    return _differ(wanted, got, rounded)


def _differ(wanted: Any, got: Any, rounded: Any = None) -> str | None:
    """How far two outputs differ, if by more than float64 rounding."""
    try:
        found = tensors_of(wanted, got, wanted if rounded is None else rounded)
    except FuseError as error:
        return str(error)
    for place, (a, b, c) in found:
        far, size = distance(a, b), max_abs(a)
        if not far <= _EXACT * size + _SLACK * OF_FLOAT32 * distance(a, c):
            return f"its output{place} differs by {far:.1e} from values up to {size:.1e}, in float64"
    return None


def _first_that_differs(model: nn.Module, fused: nn.Module, inputs: Inputs, spans: Spans) -> str:
    """The name of the first module to return another output, apart from those within a span."""
    wanted, got = _outputs(model, inputs), _outputs(fused, inputs)
    made: dict[str, Iterator[Any]] = {}
    for name, output in got:
        made[name] = chain(made.get(name, ()), [output])
    known = {name for name, _ in fused.named_modules()}
    ends: set[str] = set()
    for name, output in wanted:
        inside = f"{name}." if name else ""  # modules inside it have finished, or failed, by now
        ends = {end for end in ends | spans.get(name, set()) if end != name and not end.startswith(inside)}
        if name in known and not ends and _differ(output, next(made.get(name, iter(())), None)):
            return name
    return ""


def _outputs(model: nn.Module, inputs: Inputs) -> list[tuple[str, Any]]:
    """The outputs of all modules, in the order in which they return, as far as the forward gets."""
    outputs: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _, args, y, name=name: outputs.append((name, cloned(y))))
        for name, module in model.named_modules()
    ]
    try:
        run_in(torch.float64, model, *inputs)
    except Exception:  # the fused model may raise anything; only the place matters
        pass
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def check_rounded(fused: nn.Module, exact: nn.Module) -> None:
    """Holds every number of a fused model next to that of the float64 model that was proved.

    Raises:
        FuseError: if a tensor is another than that one, rounded once to its dtype.
    """
    numbers, proved = _tensors(fused), _tensors(exact)
    for name in dict.fromkeys([*numbers, *proved]):
        if name not in numbers or name not in proved or numbers[name].shape != proved[name].shape:
            raise FuseError(f"cannot fuse the model: {name!r} is another tensor when the model is fused in float64")
        if why := _not_rounded(numbers[name], proved[name]):
            raise FuseError(f"cannot fuse the model: {name!r} {why}")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _not_rounded(tensor: Tensor, proved: Tensor) -> str | None:
    if tensor.is_meta:
        return None
    if not tensor.is_floating_point():
        return None if bool((tensor.to(proved) == proved).all()) else "was changed by fusing"
    rounding = torch.finfo(tensor.dtype)
    wanted = exactly(proved)
    limit = rounding.eps / 2 * wanted.abs() + rounding.smallest_normal * rounding.eps + _SAME * max_abs(wanted)
    near = (exactly(tensor).to(wanted) - wanted).abs() <= limit
    far = ~(near | (tensor.to(wanted) == wanted) | wanted.isnan())  # infinities and NaN may have been there before
    if not bool(far.any()):
        return None
    index = int(far.flatten().nonzero()[0])
    got, right = (float(numbers.detach().flatten()[index]) for numbers in (tensor, wanted))
    return f"holds {got:.9g} where rounding {right:.9g} once to {tensor.dtype} is right"
