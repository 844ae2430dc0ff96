"""Evaluate conditions in source from default arguments and the present values of attributes.

As in a trace, a forward is followed as it runs now: in eval mode and with its default arguments.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from torch import nn

UNKNOWN: Any = object()
"""Stands for a value that is not known."""
PLAIN = (bool, int, float, str, type(None))


class Changed(NamedTuple):
    """Names and attributes that may change within a function."""

    names: set[str]
    attributes: set[str]


def assigned_in(node: ast.AST) -> Changed:
    """The names that a function assigns to, and the arguments of functions inside it."""
    parts = list(ast.walk(node))
    names = {part.id for part in parts if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load)}
    inner = [part.args for part in parts if isinstance(part, (ast.Lambda, ast.FunctionDef)) and part is not node]
    names |= {arg.arg for args in inner for arg in ast.walk(args) if isinstance(arg, ast.arg)}
    attributes = (part for part in parts if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load))
    return Changed(names, {part.attr for part in attributes})


class Known:
    """The values of expressions in a function, where known.

    Args:
        names: the values of arguments.
        me: the name of `self` and its module; None if there is none.
        stored: attributes that a forward may change.
    """

    def __init__(self, names: Mapping[str, Any], me: tuple[str, nn.Module] | None, stored: Container[str]) -> None:
        self.names, self.me, self.stored = names, me, stored

    def truth(self, node: ast.AST) -> bool | None:
        """Whether a condition holds; None if unknown."""
        value = self.value(node)
        return None if value is UNKNOWN else bool(value)

    def value(self, node: ast.AST) -> Any:
        """The value of an expression that is a number, a string, a module or None."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute) and self._is_me(node.value):
            return self._attribute(node.attr, UNKNOWN)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found = self.truth(node.operand)
            return UNKNOWN if found is None else not found
        if isinstance(node, ast.BoolOp):
            return self._all_or_any(node)
        return self._compare(node) if isinstance(node, ast.Compare) and len(node.ops) == 1 else UNKNOWN

    def _is_me(self, node: ast.AST) -> bool:
        return self.me is not None and isinstance(node, ast.Name) and node.id == self.me[0]

    def _attribute(self, name: str, default: Any) -> Any:
        assert self.me is not None
        module = self.me[1]
        if name in self.stored:
            return UNKNOWN
        if name in module._modules:
            return module._modules[name]
        value = vars(module).get(name, inspect.getattr_static(type(module), name, default))
        return value if value is default or isinstance(value, PLAIN) else UNKNOWN

    def _call(self, node: ast.Call) -> Any:
        """`hasattr` and `getattr` of the module itself."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in ("hasattr", "getattr") or not self._is_me(node.args[0]) or node.keywords:
            return UNKNOWN
        attribute = self.value(node.args[1])
        if not isinstance(attribute, str) or attribute in self.stored:
            return UNKNOWN
        if name == "hasattr":
            return hasattr(self.me[1], attribute)  # type: ignore[index]  # as `_is_me` says
        default = self.value(node.args[2]) if len(node.args) > 2 else UNKNOWN
        return self._attribute(attribute, default)

    def _all_or_any(self, node: ast.BoolOp) -> Any:
        decides = isinstance(node.op, ast.Or)
        found = [self.truth(value) for value in node.values]
        return decides if decides in found else UNKNOWN if None in found else not decides

    def _compare(self, node: ast.Compare) -> Any:
        one, two = self.value(node.left), self.value(node.comparators[0])
        if one is UNKNOWN or two is UNKNOWN:
            return UNKNOWN
        operation = node.ops[0]
        if isinstance(operation, (ast.Is, ast.IsNot)):
            return (one is two) == isinstance(operation, ast.Is)
        if isinstance(operation, (ast.Eq, ast.NotEq)):
            return (one == two) == isinstance(operation, ast.Eq)
        return UNKNOWN
