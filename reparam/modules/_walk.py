"""The modules of a model by their dotted names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import nn


def walk(
    model: nn.Module, inside: Callable[[nn.Module], Iterable[tuple[str, nn.Module]]]
) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over a model and the modules inside it, as listed by `inside`, each once and with its first name."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module
            waiting += [(f"{name}.{inner}".strip("."), part) for inner, part in reversed([*inside(module)])]
