"""What models take and return, whatever holds it, taken apart and compared."""

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
    """The largest of some numbers, 0 of none; NaN if one is NaN, which Python's `max` would drop."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def distance(a: Tensor, b: Tensor) -> float:
    """max |a - b| over all values, NaN if there is one in either; of integers, how many differ."""
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b.to(a.device)).sum())
    a, b = exactly(a), exactly(b)
    return float((a - b).abs().masked_fill_(a == b, 0.0).max())  # an infinity is as far from itself as a number is


def max_abs(x: Tensor) -> float:
    """The largest finite |x|; 0 of integers, which have no size."""
    if not (x.is_floating_point() or x.is_complex()):
        return 0.0
    finite = exactly(x).abs()
    finite = finite[finite.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def exactly(x: Tensor) -> Tensor:
    """A tensor in float64, or two of them as complex numbers; on the CPU if its device has none."""
    dtype = torch.complex128 if x.is_complex() else torch.float64
    return x.detach().to(float64_device(x.device), dtype)


def leaves(value: Any, where: str = "", around: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All that a value holds, each by the place where it stands in it; of what holds others, its type."""
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
    """A copy of any value that holds other tensors."""
    memo: dict[int, Any] = {id(leaf): make(leaf) for _, leaf in leaves(values) if isinstance(leaf, Tensor)}
    return copy.deepcopy(values, memo)


def cloned(values: Any) -> Any:
    """A copy of any value, with tensors of its own."""
    return with_tensors(values, lambda tensor: tensor.detach().clone())


def tensors_of(*values: Any) -> list[tuple[str, tuple[Tensor, ...]]]:
    """The tensors of several values that stand at the same place, with that place.

    Raises:
        FuseError: if the values are not of one structure, or two tensors differ in shape or kind; both are named.
    """
    sides = [dict(leaves(value)) for value in values]
    for side in sides[1:]:
        for place in dict.fromkeys([*sides[0], *side]):
            if (what := _unlike(sides[0].get(place, "nothing"), side.get(place, "nothing"))) is not None:
                raise FuseError(f"the outputs are not alike{f' at {place}' if place else ''}: {what}")
    return [
        (place, tuple(_tensor(side[place]) for side in sides))
        for place, leaf in sides[0].items()
        if isinstance(leaf, (Tensor, np.ndarray, float, int, complex))
    ]


def _unlike(a: Any, b: Any) -> str | None:
    """What two leaves are, if they cannot be compared, or have nothing to compare and differ."""
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
    """The dtype, but one for all that are rounded."""
    return "real" if x.is_floating_point() else "complex" if x.is_complex() else x.dtype


def _named(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"a tensor of shape {tuple(leaf.shape)} and {leaf.dtype}"
    return leaf.__name__ if isinstance(leaf, type) else repr(leaf) if isinstance(leaf, str) else type(leaf).__name__
