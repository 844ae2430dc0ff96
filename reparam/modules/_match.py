"""Modules told by their dotted name, their type, or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

Match = str | type | Sequence[str] | Callable[[str, nn.Module], bool]
"""A shell pattern of the dotted name, several of them, a type, or a function of name and module."""


def matcher(match: Match) -> Callable[[str, nn.Module], bool]:
    """Turn a `Match` into a function that says whether a module with a given name matches."""
    if isinstance(match, type):
        return lambda name, module: isinstance(module, match)
    if callable(match):
        return match
    patterns = [match] if isinstance(match, str) else list(match)
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)
