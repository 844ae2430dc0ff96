"""The modules of a model by their dotted names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import nn


def walk(
    model: nn.Module, inside: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]]
) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, by its first name, with what is in it, of which only what `inside` lists is looked at."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module
            waiting += [(f"{name}.{inner}".strip("."), part) for inner, part in reversed([*inside(module)])]
