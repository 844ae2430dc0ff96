"""What is inside of a module, listed once for as long as it is the same."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..bn._norm import BatchNorm, is_norm


class Inside(NamedTuple):
    """Modules, and what tells whether they are still the same.

    The outermost one is not among them: it holds this, and would hold itself.
    """

    modules: list[nn.Module]
    norms: list[BatchNorm]
    tables: list[dict[str, nn.Module | None]]
    """Of each module with children, in which they are; of the outermost one first."""
    children: list[tuple[nn.Module | None, ...]]
    """In the same order, as they were when all was listed."""
    empty: list[dict[str, nn.Module | None]]
    """Of each module without children, in which they would be."""

    def is_current(self, root: nn.Module) -> bool:
        """Whether a walk would find the same; in a few operations that are not Python's."""
        same_tables = self.tables[0] is root._modules and not any(self.empty)
        return same_tables and [*map(tuple, map(dict.values, self.tables))] == self.children


def inside_of(root: nn.Module) -> Inside:
    """Lists what is inside of a module with children."""
    modules = list(root.modules())
    tables = [module._modules for module in modules if module._modules]
    children = [tuple(table.values()) for table in tables]
    empty = [module._modules for module in modules if not module._modules]
    return Inside(modules[1:], [m for m in modules[1:] if is_norm(m)], tables, children, empty)


class Remembered:
    """What is inside of a module; it is no part of copies and pickles of the module."""

    def __init__(self) -> None:
        self._last: Inside | None = None

    def __reduce__(self) -> tuple[type[Remembered], tuple[()]]:
        return type(self), ()

    def of(self, root: nn.Module) -> Inside:
        """What is inside of the module that this belongs to."""
        last = self._last
        if last is None or not last.is_current(root):
            self._last = last = inside_of(root)
        return last
