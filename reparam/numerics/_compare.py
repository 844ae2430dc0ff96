"""Inputs and outputs of models, in any nested container: flattened, copied and compared."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import FuseError
from ._precision import float64_device


def largest(values: Iterable[float]) -> float:
    """The largest of some numbers, 0 if there are none, NaN if one is NaN (Python's `max` would drop it)."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def distance(a: Tensor, b: Tensor) -> float:
    """max |a - b| over all values, NaN if either holds one; for integers, the number of values that differ."""
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b.to(a.device)).sum())
    a, b = exactly(a), exactly(b)
    return float((a - b).abs().masked_fill_(a == b, 0.0).max())  # an infinity minus itself is NaN, but equal


def max_abs(x: Tensor) -> float:
    """The largest finite |x|; 0 for integers, which `distance` counts and does not subtract."""
    if not (x.is_floating_point() or x.is_complex()):
        return 0.0
    finite = exactly(x).abs()
    finite = finite[finite.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def exactly(x: Tensor) -> Tensor:
    """The tensor in float64, or in complex128 if it is complex; on the CPU if its device has no float64."""
    dtype = torch.complex128 if x.is_complex() else torch.float64
    return x.detach().to(float64_device(x.device), dtype)


def leaves(value: Any, where: str = "", around: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Everything inside a value with its place, such as ".x[0]"; for a container, its type."""
    parts = None if any(value is outer for outer in around) else _parts(value)
    yield where, value if parts is None else type(value)
    for step, part in parts or ():
        yield from leaves(part, where + step, (*around, value))


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, (Tensor, np.ndarray, type)) or callable(value):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if is_dataclass(value):
        return [(f".{field.name}", getattr(value, field.name, None)) for field in fields(value)]
    return [(f".{name}", part) for name, part in vars(value).items()] if hasattr(value, "__dict__") else None


def with_tensors(values: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """A copy of any value in which `make` has replaced every tensor."""
    memo: dict[int, Any] = {id(leaf): make(leaf) for _, leaf in leaves(values) if isinstance(leaf, Tensor)}
    return copy.deepcopy(values, memo)


def cloned(values: Any) -> Any:
    """A copy of any value, tensors included."""
    return with_tensors(values, lambda tensor: tensor.detach().clone())


def tensors_of(*values: Any) -> list[tuple[str, tuple[Tensor, ...]]]:
    """Group the tensors of several values by their place.

    Raises:
        FuseError: if the values differ in structure, or two tensors in shape or kind; the message names both.
    """
    sides = [dict(leaves(value)) for value in values]
    for side in sides[1:]:
        for place in dict.fromkeys([*sides[0], *side]):
            if (what := _unlike(sides[0].get(place, "nothing"), side.get(place, "nothing"))) is not None:
                raise FuseError(f"the outputs do not match{f' at {place}' if place else ''}: {what}")
    return [
        (place, tuple(_tensor(side[place]) for side in sides))
        for place, leaf in sides[0].items()
        if isinstance(leaf, (Tensor, np.ndarray, float, int, complex))
    ]


def _unlike(a: Any, b: Any) -> str | None:
    """A description of both leaves if they cannot be compared, or if they have no values to compare and differ."""
    a, b = (torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in (a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and _kind(a) == _kind(b)
    elif isinstance(a, (type, str, bytes)) or a is None:
        same = a is b or a == b
    else:
        same = type(a) is type(b)
    return None if same else f"{_named(a)} and {_named(b)}"


def _tensor(leaf: Any) -> Tensor:
    return torch.as_tensor(leaf, dtype=torch.float64 if isinstance(leaf, float) else None)


def _kind(x: Tensor) -> object:
    """The dtype; one name for all real dtypes and one for all complex dtypes."""
    return "real" if x.is_floating_point() else "complex" if x.is_complex() else x.dtype


def _named(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"a tensor of shape {tuple(leaf.shape)} and {leaf.dtype}"
    return leaf.__name__ if isinstance(leaf, type) else repr(leaf) if isinstance(leaf, str) else type(leaf).__name__
