"""Bind the arguments of a call to names in a function."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import NamedTuple

from .things import Things


class Bound(NamedTuple):
    """The arguments of a call."""

    names: dict[str, Things]
    empty: set[str]
    """The names of `*args` and `**kwargs` that are empty."""
    rest: Things
    """The contents of `*args` and `**kwargs`."""


def bind(
    wanted: ast.arguments,
    args: list[Things],
    named: Mapping[str, Things],
    defaults: Mapping[str, Things],
    spread: Things,
) -> Bound:
    """Bind the arguments of a call to names.

    Args:
        wanted: the parameters of the function.
        args: the positional arguments.
        named: the keyword arguments; with a `**` among them, there may be others.
        defaults: defaults of parameters that are certainly not passed.
        spread: the contents of `**things`; each parameter that is not passed may be any of them.
    """
    places = [arg.arg for arg in [*wanted.posonlyargs, *wanted.args]]
    keywords = [arg.arg for arg in wanted.kwonlyargs]
    given = {**dict(zip(places, args)), **{name: named[name] for name in (*places, *keywords) if name in named}}
    names = {name: given.get(name, defaults.get(name, spread)) for name in (*places, *keywords)}
    positions = [thing for things in args[len(places) :] for thing in things]
    others = [thing for name, things in named.items() if name not in names and name != "**" for thing in things]
    others += spread if wanted.kwarg else []
    sure = "**" not in named
    empty = {wanted.vararg.arg} if wanted.vararg and sure and len(args) <= len(places) else set()
    empty |= {wanted.kwarg.arg} if wanted.kwarg and sure and named.keys() <= names.keys() else set()
    return Bound(names, empty, [*positions, *others])
