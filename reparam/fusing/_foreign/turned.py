"""Axes that are turned in front of a norm, which counts the second one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.fx import Node

from ...bn._frozen import kind_before

_AXES: dict[Any, int] = {nn.BatchNorm1d: 3, nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}


def axes_of(norm: nn.Module) -> int:
    """How many axes there are in front of a norm, if any are turned there; 0 if that is not known."""
    return _AXES.get(kind_before(norm), 0)


def turned_axes(node: Node, norm: nn.Module) -> Sequence[int] | None:
    """Which axis becomes each of those in front of a norm, if a node does nothing but turn them."""
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
