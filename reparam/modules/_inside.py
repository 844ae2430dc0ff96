"""The modules inside a module, listed once and cached until they change."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..bn._norm import BatchNorm, is_norm


class Inside(NamedTuple):
    """The modules inside a module, with the data to check that they have not changed.

    The outermost module is not among them: it holds this object, and would hold itself.
    """

    modules: list[nn.Module]
    norms: list[BatchNorm]
    tables: list[dict[str, nn.Module | None]]
    """The `_modules` of each module with children; that of the outermost one first."""
    children: list[tuple[nn.Module | None, ...]]
    """The children in these tables when they were listed, in the same order."""
    empty: list[dict[str, nn.Module | None]]
    """The `_modules` of each module without children."""

    def is_current(self, root: nn.Module) -> bool:
        """Whether another walk would find the same modules; fast, without a loop in Python."""
        same_tables = self.tables[0] is root._modules and not any(self.empty)
        return same_tables and [*map(tuple, map(dict.values, self.tables))] == self.children


def inside_of(root: nn.Module) -> Inside:
    """List the modules inside a module with children."""
    modules = list(root.modules())
    tables = [module._modules for module in modules if module._modules]
    children = [tuple(table.values()) for table in tables]
    empty = [module._modules for module in modules if not module._modules]
    return Inside(modules[1:], [m for m in modules[1:] if is_norm(m)], tables, children, empty)


class Remembered:
    """A cache of the modules inside a module; copies and pickles of the module start with an empty one."""

    def __init__(self) -> None:
        self._last: Inside | None = None

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return type(self), ()

    def of(self, root: nn.Module) -> Inside:
        """The modules inside `root`, the module that owns this cache."""
        last = self._last
        if last is None or not last.is_current(root):
            self._last = last = inside_of(root)
        return last
