"""Find the source of a function as a syntax tree."""

from __future__ import annotations

import ast
import linecache
from functools import cache
from types import CodeType
from typing import Any


def sources_of(code: CodeType) -> list[Any]:
    """The functions in the source that may be this one; several, if one line has several of the same form."""
    written = _functions(code.co_filename).get(code.co_firstlineno, [])
    return [node for node in written if _may_be(node, code)]


def _may_be(node: Any, code: CodeType) -> bool:
    names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
    mentioned = {_name_of(part) for part in ast.walk(node)}
    known = set(code.co_names) <= mentioned  # fails after an edit, and for names with two leading underscores
    return getattr(node, "name", "<lambda>") == code.co_name and names == list(code.co_varnames[: len(names)]) and known


def _name_of(part: ast.AST) -> Any:
    """The name in a part of the source: a variable, an attribute, an import, or its module."""
    names = (getattr(part, kind, None) for kind in ("id", "attr", "name", "module"))
    return next(filter(None, names), None)


@cache
def _functions(filename: str) -> dict[int, list[Any]]:
    """The functions in a file, by the line they begin in."""
    found: dict[int, list[Any]] = {}
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            found.setdefault(first, []).append(node)
    return found
