"""The possible values of expressions in source, as far as they matter for who uses which module."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

Things = list[Any]
"""Modules, functions, and lists, tuples and dicts of these."""

OF_TENSORS = ("dtype", "device", "shape", "ndim", "is_cuda", "requires_grad")
"""Attributes of a weight that can be read without reading its values."""


class Numbers:
    """The parameters of a module, if only their dtype and device are read."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


class Row(tuple):
    """A tuple with known possible values for each place."""

    slots: list[Things]

    def __new__(cls, slots: Iterable[Things]) -> Row:
        slots = list(slots)
        row = super().__new__(cls, (thing for things in slots for thing in things))
        row.slots = slots
        return row


class Fixed:
    """A number, a string, True, False or None that is passed to a function."""

    def __init__(self, value: Any) -> None:
        self.value = value


_FIXED: dict[tuple[type, Any], Fixed] = {}


def fixed(value: Any) -> Fixed:
    """The same object for the same value, so that calls can be told apart by their arguments."""
    return _FIXED.setdefault((type(value), value), Fixed(value))


class Instance:
    """An object of a user's class that a forward creates."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.kept: dict[str, Things] = {}


def handed_out() -> None:
    """Stands for methods that return the contents of a container."""


def hands_out(things: Things, in_pairs: bool) -> MethodType:
    return MethodType(handed_out, [tuple(things)] if in_pairs else things)


def inside(thing: Any) -> Things:
    if isinstance(thing, Numbers):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.children())
    if isinstance(thing, Instance):
        return [one for things in thing.kept.values() for one in things]
    return relevant(thing.values() if isinstance(thing, dict) else thing if isinstance(thing, CONTAINERS) else [])


CONTAINERS = (list, tuple, set, dict)
_KINDS = (nn.Module, FunctionType, MethodType, partial, ModuleType, Numbers, Instance, type)


def relevant(values: Iterable[Any]) -> Things:
    """The values that may lead to a module."""
    return [value for value in values if isinstance(value, _KINDS) or (isinstance(value, CONTAINERS) and inside(value))]


def key_of(things: Things) -> Any:
    return tuple(
        (tuple(map(key_of, thing.slots)) if isinstance(thing, Row) else key_of(list(inside(thing))))
        if isinstance(thing, CONTAINERS)
        else id(thing)
        for thing in things
    )


def cells(function: FunctionType) -> dict[str, Things]:
    """The variables that a function closes over."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = relevant([cell.cell_contents])
        except ValueError:  # not yet filled
            found[name] = []
    return found


def at(place: ast.expr, thing: Any, members: Things) -> Things:
    """The values at an index or slice of a container; all of them, if the index is unknown."""
    if type(thing) not in (nn.Sequential, nn.ModuleList):
        return members
    try:  # numbers, as they stand there
        if isinstance(place, ast.Slice):
            ends = (place.lower, place.upper, place.step)
            return list(thing)[slice(*(None if end is None else ast.literal_eval(end) for end in ends))]
        return [list(thing)[ast.literal_eval(place)]]
    except (ValueError, TypeError, IndexError):
        return members
