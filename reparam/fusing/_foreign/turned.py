"""Permutations of axes before a norm, whose channels are the second axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.fx import Node

from ...bn._frozen import kind_before

_AXES: dict[Any, int] = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


def axes_of(norm: nn.Module) -> int:
    """The number of axes of a norm's input, needed if they are permuted before it; 0 if unknown."""
    return _AXES.get(kind_before(norm), 0)


def turned_axes(node: Node, norm: nn.Module) -> Sequence[int] | None:
    """The permutation of a node that only permutes axes before a norm; None for other nodes."""
    count = axes_of(norm)
    if not count or getattr(node.target, "__name__", node.target) not in ("permute", "transpose"):
        return None
    given: Any = [*node.args[1:], *node.kwargs.values()]
    axes = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    if not all(isinstance(axis, int) for axis in axes):
        return None
    axes = [axis % count for axis in axes]
    if len(axes) == 2:
        one, two = axes
        return [{one: two, two: one}.get(axis, axis) for axis in range(count)]
    return axes if len(axes) == count else None
