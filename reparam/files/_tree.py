"""The content of a file as a tree: dicts and lists that hold tensors, numbers and other values."""

from __future__ import annotations

import reprlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from ._unpickling import StandIn

_MOST_VISITS, _MOST_KEYS = 3, 32
"""How often the same dict or list is visited, and how deep: a saved object may contain itself."""
_MOST_LINES, _DEEPEST = 12, 4
A_MODULE = "a whole module"


class Node(NamedTuple):
    """A dict of the tree."""

    keys: tuple[str, ...]
    """The keys that lead to it."""
    content: Mapping[Any, Any]
    note: Any = None
    """The note here, or the nearest one above."""


def tensors_of(content: Any) -> dict[str, Tensor]:
    """The tensors of a dict that have a name."""
    pairs = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, Tensor)}


def dicts_in(root: Any, noted: str) -> Iterator[Node]:
    """The dicts of a tree, nearest first. States of optimizers are left out, as they hold no network.

    Args:
        root: a dict or a list.
        noted: the key of notes.
    """
    waiting, seen = deque([Node((), root)]), Counter[int]()
    while waiting:
        keys, content, note = waiting.popleft()
        if _is_optimizer(content):
            continue
        if isinstance(content, Mapping):
            note = content.get(noted, note)
            yield Node(keys, content, note)
        for key, value in inside_of(content):
            seen[id(value)] += 1
            if seen[id(value)] <= _MOST_VISITS and len(keys) < _MOST_KEYS:
                waiting.append(Node((*keys, key), value, note))


def inside_of(node: Any) -> Iterator[tuple[str, Any]]:
    """The dicts and lists in a dict or a list, by their keys."""
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    return ((str(key), value) for key, value in pairs if is_inner(value))


def is_inner(value: Any) -> bool:
    """Whether it may contain something: a dict or a list, but not a stand-in for an object."""
    return isinstance(value, (Mapping, list, tuple)) and not isinstance(value, StandIn)


def _is_optimizer(node: Any) -> bool:
    return isinstance(node, Mapping) and {"state", "param_groups"} <= node.keys()


def drawn(root: Any) -> str:
    """A tree in a few lines."""
    lines = list(islice(_lines(root, 0), _MOST_LINES + 1))
    return "\n".join([*lines[:_MOST_LINES], "  ..."] if len(lines) > _MOST_LINES else lines)


def _lines(node: Any, depth: int) -> Iterator[str]:
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    tensors = tensors_of(node)
    start = "  " * (depth + 1)
    if tensors:
        yield f"{start}{len(tensors)} tensors: {some_keys(tensors, 3)}"
    for key, value in pairs:
        if isinstance(key, str) and key in tensors:
            continue
        inner = is_inner(value) and len(value) and not _is_optimizer(value) and depth < _DEEPEST
        yield f"{start}{_name(key)}: {'' if inner else kind_of(value)}".rstrip()
        if inner:
            yield from _lines(value, depth + 1)


def _name(key: Any) -> str:
    return key if isinstance(key, str) and len(key) < 60 else reprlib.repr(key)


def kind_of(value: Any) -> str:
    """What a value is, in a few words."""
    if isinstance(value, StandIn):
        is_module = isinstance(value.state, dict) and "_modules" in value.state
        return f"{A_MODULE}, {value!r}" if is_module else repr(value)
    if _is_optimizer(value):
        return "the state of an optimizer"
    if is_inner(value):
        return f"{type(value).__name__} of {len(value)}"
    return f"Tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def some_keys(content: Mapping[Any, Any], most: int = 5) -> str:
    """The first keys of a dict, each of them shortened."""
    keys = ", ".join(reprlib.repr(key) for key in islice(content, most)) or "none"
    return keys + (", ..." if len(content) > most else "")
