"""The names in a function, and what they may mean."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any, Protocol

from torch import nn

from .arguments import bind
from .known import PLAIN, Known, assigned_in
from .things import OF_TENSORS, Fixed, Instance, Row, Things, at, cells, fixed, inside, relevant

_LISTING = {"reversed", "sorted", "list", "tuple", "iter", "next", "filter", "set", "dict"}
_OPERATIONS = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.FormattedValue)
_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_HARMLESS = {"len", "isinstance", "hasattr", "type", "id", "callable", "print", "range", "str", "bool"}


class Uses(Protocol):
    """The part of `ModuleUses` that a scope needs."""

    stored: set[str]

    def lose(self, things: Iterable[Any]) -> None: ...
    def members(self, thing: Any) -> Things: ...
    def attribute(self, thing: Any, name: str) -> Things: ...
    def call(
        self, function: Any, args: list[Things], named: dict[str, Things], site: ast.AST | None = None
    ) -> Things: ...


class Scope(ast.NodeVisitor):
    """The names in a function, and what they may mean."""

    def __init__(
        self,
        uses: Uses,
        function: FunctionType,
        node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda,
        args: list[Things],
        named: dict[str, Things],
        defaults: Mapping[str, Things],
    ) -> None:
        self.uses, self.function, self.node = uses, function, node
        self.returned: Things = []
        spread = [member for thing in named.get("**", []) for member in uses.members(thing)]
        bound = bind(node.args, args, named, defaults, spread)
        uses.lose(bound.rest)
        self.empty, self.names = bound.empty, {**cells(function), **bound.names}
        self.me = args[0] if args and bound.names else []
        changed = assigned_in(node)
        uses.stored.update(changed.attributes)
        fixed_names = {name: value for name, value in _values(self.names) if name not in changed.names}
        me = next(iter(bound.names), "")
        is_module = len(self.me) == 1 and isinstance(self.me[0], nn.Module) and me not in changed.names
        self.known = Known(fixed_names, (me, self.me[0]) if is_module else None, uses.stored)

    def run(self) -> Things:
        """Follow the function; returns what it may return."""
        node = self.node
        again = any(isinstance(part, _LOOPS) for part in ast.walk(node) if part is not node)
        for _ in range(2 if again else 1):  # a loop may first use names that it assigns in its last lines
            for line in node.body if isinstance(node.body, list) else [ast.Return(node.body)]:
                self.visit(line)
        return self.returned

    def visit(self, node: ast.AST) -> Things:
        return super().visit(node) or []

    def generic_visit(self, node: ast.AST) -> Things:
        found = [thing for child in ast.iter_child_nodes(node) for thing in self.visit(child)]
        if isinstance(node, _OPERATIONS):  # operators run methods of objects
            self.uses.lose(thing for thing in found if isinstance(thing, Instance))
        return found

    def visit_Name(self, node: ast.Name) -> Things:
        if node.id in self.names:
            return self.names[node.id]
        return relevant([self.function.__globals__.get(node.id)])

    def visit_Attribute(self, node: ast.Attribute) -> Things:
        source = node.value
        if node.attr in OF_TENSORS and isinstance(source, ast.Attribute):  # as in self.conv.weight.dtype
            self.visit(source.value)
            return []
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == "super":
            return [found for thing in self.me for found in self._inherited(thing, node.attr)]
        return [found for thing in self.visit(source) for found in self.uses.attribute(thing, node.attr)]

    def _inherited(self, thing: Any, name: str) -> Things:
        """`super().name`, from the class that the function was written in."""
        here = next((cell for cell in self.function.__closure__ or () if inspect.isclass(cell.cell_contents)), None)
        mro = (thing.kind if isinstance(thing, Instance) else type(thing)).__mro__
        after = mro[mro.index(here.cell_contents) + 1 :] if here and here.cell_contents in mro else ()
        method = next((vars(kind)[name] for kind in after if name in vars(kind)), None)
        if not isinstance(method, FunctionType):
            self.uses.lose([thing])
            return []
        return [MethodType(method, thing)]

    def visit_Subscript(self, node: ast.Subscript) -> Things:
        self.visit(node.slice)
        found = [
            member for thing in self.visit(node.value) for member in at(node.slice, thing, self.uses.members(thing))
        ]
        return ([found] if found else []) if isinstance(node.slice, ast.Slice) else found

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        holds = self.known.truth(node.test)
        for line in [*(node.body if holds is not False else ()), *(node.orelse if holds is not True else ())]:
            self.visit(line)

    def visit_IfExp(self, node: ast.IfExp) -> Things:
        self.visit(node.test)
        holds = self.known.truth(node.test)
        branches = [*([node.body] if holds is not False else ()), *([node.orelse] if holds is not True else ())]
        return [thing for branch in branches for thing in self.visit(branch)]

    def visit_Compare(self, node: ast.Compare) -> Things:
        self.generic_visit(node)
        return []

    def visit_Tuple(self, node: ast.Tuple) -> Things:
        parts = [self.visit(part) for part in node.elts]
        if not any(parts):
            return []
        starred = any(isinstance(part, ast.Starred) for part in node.elts)
        return [tuple(thing for things in parts for thing in things) if starred else Row(parts)]

    def visit_List(self, node: ast.List | ast.Set) -> Things:
        found = [thing for part in node.elts for thing in self.visit(part)]
        return [tuple(found)] if found else []  # its elements may be moved, so places are unknown

    visit_Set = visit_List

    def visit_Starred(self, node: ast.Starred) -> Things:
        return [member for thing in self.visit(node.value) for member in self.uses.members(thing)]

    def visit_Dict(self, node: ast.Dict) -> Things:
        found = [thing for part in [*node.keys, *node.values] if part for thing in self.visit(part)]
        return [tuple(found)] if found else []

    def visit_Call(self, node: ast.Call) -> Things:
        spread = [arg for arg in node.args if isinstance(arg, ast.Starred) and not self._is_empty(arg.value)]
        args = [self._argument(arg) for arg in node.args if arg in spread or not isinstance(arg, ast.Starred)]
        keywords = [keyword for keyword in node.keywords if keyword.arg or not self._is_empty(keyword.value)]
        named = {keyword.arg or "**": self._argument(keyword.value) for keyword in keywords}
        if spread:
            named.setdefault("**", [])
        given = [thing for things in [*args, *named.values()] for thing in things]
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self.names and name not in self.function.__globals__ and hasattr(builtins, name):
            return self._call_builtin(name, args, given, node)
        functions = self.visit(node.func)
        if not functions or spread:
            self.uses.lose(given)
        return [thing for function in functions for thing in self.uses.call(function, args, named, node)]

    def _is_empty(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in self.empty

    def _argument(self, node: ast.AST) -> Things:
        things, value = self.visit(node), self.known.value(node)
        return things or ([fixed(value)] if isinstance(value, PLAIN) else [])

    def _call_builtin(self, name: str, args: list[Things], given: Things, node: ast.Call) -> Things:
        if name in ("zip", "enumerate"):
            slots = [[member for thing in things for member in self.uses.members(thing)] for things in args]
            row = Row([[], *slots[:1]] if name == "enumerate" else slots)
            return [[row]] if any(slots) else []
        if name in _LISTING:
            parts = [member for thing in given for member in self.uses.members(thing)]
            return parts if name == "next" else [parts]
        if name == "getattr" and isinstance(node.args[1], ast.Constant):
            return [found for thing in given for found in self.uses.attribute(thing, str(node.args[1].value))]
        if name == "getattr":
            return [found for thing in given for found in [*inside(thing), *_attributes(thing)]]
        if name not in _HARMLESS:
            self.uses.lose(given)
        return []

    def _bind(self, target: ast.AST, things: Things) -> None:
        if isinstance(target, ast.Name):
            known = self.names.get(target.id, [])
            self.names[target.id] = [*known, *(thing for thing in things if not any(thing is one for one in known))]
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._unpack(target.elts, things)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, [list(things)] if things else [])
        elif not (isinstance(target, ast.Attribute) and self._keep(target, things)):
            self.visit(target)  # an attribute, or a place in a list
            owner = self.visit(getattr(target, "value", target))
            self.uses.lose([*things, *(thing for thing in owner if isinstance(thing, Instance))])

    def _unpack(self, targets: list[ast.expr], things: Things) -> None:
        starred = any(isinstance(target, ast.Starred) for target in targets)
        for thing in things:
            fits = isinstance(thing, Row) and len(thing.slots) == len(targets) and not starred
            for index, target in enumerate(targets):
                self._bind(target, thing.slots[index] if fits else self.uses.members(thing))

    def _keep(self, target: ast.Attribute, things: Things) -> bool:
        """Store things in an object of a user's class, while it is created."""
        owners = self.visit(target.value)
        plain = all(isinstance(one, Instance) and not hasattr(one.kind, target.attr) for one in owners)
        if self.function.__name__ != "__init__" or not plain:
            return False
        for owner in owners:
            owner.kept.setdefault(target.attr, []).extend(things)
        return True

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)

    def _assign(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and _match(target.elts, value.elts):
            for one, its_value in zip(target.elts, value.elts):
                self._assign(one, its_value)
        else:
            self._bind(target, self.visit(value))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Things:
        things = self.visit(node.value)
        self._bind(node.target, things)
        return things

    def visit_AnnAssign(self, node: ast.AnnAssign | ast.AugAssign) -> None:
        if node.value is not None:
            self._bind(node.target, self.visit(node.value))

    visit_AugAssign = visit_AnnAssign

    def visit_For(self, node: ast.For | ast.AsyncFor | ast.comprehension) -> None:
        self._bind(node.target, [member for thing in self.visit(node.iter) for member in self.uses.members(thing)])
        for part in [*getattr(node, "body", ()), *getattr(node, "orelse", ()), *getattr(node, "ifs", ())]:
            self.visit(part)

    visit_AsyncFor = visit_comprehension = visit_For

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Things:
        for generator in node.generators:
            self.visit(generator)
        found = self.visit(node.elt)
        return [found] if found else []

    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> Things:
        for generator in node.generators:
            self.visit(generator)
        found = [*self.visit(node.key), *self.visit(node.value)]
        return [found] if found else []

    def visit_withitem(self, node: ast.withitem) -> None:
        things = self.visit(node.context_expr)
        self.uses.lose(thing for thing in things if isinstance(thing, Instance))
        if node.optional_vars is not None:
            self._bind(node.optional_vars, things)

    def visit_Return(self, node: ast.Return | ast.Yield | ast.YieldFrom) -> None:
        if node.value is not None:
            self.returned = [*self.returned, *self.visit(node.value)]

    visit_Yield = visit_YieldFrom = visit_Return


def _values(names: Mapping[str, Things]) -> Iterator[tuple[str, Any]]:
    """The names that have a single possible value."""
    for name, things in names.items():
        if len(things) == 1 and isinstance(things[0], Fixed):
            yield name, things[0].value


def _attributes(thing: Any) -> Things:
    return relevant(value for name, value in getattr(thing, "__dict__", {}).items() if name[0] != "_")


def _match(targets: list[ast.expr], values: list[ast.expr]) -> bool:
    return len(targets) == len(values) and not any(isinstance(part, ast.Starred) for part in [*targets, *values])
