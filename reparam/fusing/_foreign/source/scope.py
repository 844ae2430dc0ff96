"""The names in a function, and what they may mean."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable
from types import FunctionType, MethodType
from typing import Any, Protocol

from .things import OF_TENSORS, Things, cells, inside, relevant

_LISTING = {"zip", "enumerate", "reversed", "sorted", "list", "tuple", "iter", "next", "filter", "set"}
_HARMLESS = {"len", "isinstance", "hasattr", "type", "id", "callable", "print", "range", "str", "bool"}


class Uses(Protocol):
    """What keeps the book of the modules that are used."""

    def lose(self, things: Iterable[Any]) -> None: ...
    def members(self, thing: Any) -> Things: ...
    def attribute(self, thing: Any, name: str) -> Things: ...
    def call(self, function: Any, args: list[Things], named: dict[str, Things]) -> Things: ...


class Scope(ast.NodeVisitor):
    """The names in a function, and what they may mean."""

    def __init__(
        self, uses: Uses, function: FunctionType, wanted: ast.arguments, args: list[Things], named: dict[str, Things]
    ) -> None:
        self.uses, self.function = uses, function
        self.returned: Things = []
        self.names: dict[str, Things] = cells(function)
        parameters = [arg.arg for arg in [*wanted.posonlyargs, *wanted.args]]
        rest = args[len(parameters) :]
        self.names.update(zip(parameters, args))
        self.names.update({arg.arg: named.get(arg.arg, []) for arg in wanted.kwonlyargs})
        self.names.update({name: things for name, things in named.items() if name in parameters})
        self.me = args[0] if args and parameters else []
        uses.lose(thing for things in rest for thing in things)  # *args
        uses.lose(thing for name, things in named.items() if name not in self.names for thing in things)  # **kwargs

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> Things:
        """What the function may return."""
        for _ in range(2):  # twice, as a loop may use in its first lines what it names in its last
            for line in node.body if isinstance(node.body, list) else [ast.Return(node.body)]:
                self.visit(line)
        return self.returned

    def visit(self, node: ast.AST) -> Things:
        return super().visit(node) or []

    def generic_visit(self, node: ast.AST) -> Things:
        return [thing for child in ast.iter_child_nodes(node) for thing in self.visit(child)]

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
        """`super().name`, of the class in which the function was written."""
        here = next((cell for cell in self.function.__closure__ or () if inspect.isclass(cell.cell_contents)), None)
        mro = type(thing).__mro__
        after = mro[mro.index(here.cell_contents) + 1 :] if here and here.cell_contents in mro else ()
        method = next((vars(kind)[name] for kind in after if name in vars(kind)), None)
        if not isinstance(method, FunctionType):
            self.uses.lose([thing])
            return []
        return [MethodType(method, thing)]

    def visit_Subscript(self, node: ast.Subscript) -> Things:
        self.visit(node.slice)
        return [member for thing in self.visit(node.value) for member in self.uses.members(thing)]

    def visit_Compare(self, node: ast.Compare) -> Things:
        self.generic_visit(node)
        return []

    def visit_Tuple(self, node: ast.Tuple | ast.List | ast.Set) -> Things:
        found = [thing for part in node.elts for thing in self.visit(part)]
        return [tuple(found)] if found else []

    visit_List = visit_Set = visit_Tuple

    def visit_Dict(self, node: ast.Dict) -> Things:
        found = [thing for part in [*node.keys, *node.values] if part for thing in self.visit(part)]
        return [tuple(found)] if found else []

    def visit_Call(self, node: ast.Call) -> Things:
        args = [self.visit(arg) for arg in node.args]
        named = {keyword.arg or "**": self.visit(keyword.value) for keyword in node.keywords}
        given = [thing for things in [*args, *named.values()] for thing in things]
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self.names and name not in self.function.__globals__ and hasattr(builtins, name):
            return self._call_builtin(name, given, node)
        functions = self.visit(node.func)
        if not functions or any(isinstance(arg, ast.Starred) for arg in node.args):
            self.uses.lose(given)
        return [thing for function in functions for thing in self.uses.call(function, args, named)]

    def _call_builtin(self, name: str, given: Things, node: ast.Call) -> Things:
        if name in _LISTING:
            parts = [member for thing in given for member in self.uses.members(thing)]
            return parts if name == "next" else [[tuple(parts)] if name in ("zip", "enumerate") else parts]
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
            for part in target.elts:
                self._bind(part, [member for thing in things for member in self.uses.members(thing)])
        elif isinstance(target, ast.Starred):
            self._bind(target.value, [list(things)] if things else [])
        else:  # an attribute, or a place in a list
            self.visit(target)
            self.uses.lose(things)

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
        if node.optional_vars is not None:
            self._bind(node.optional_vars, things)

    def visit_Return(self, node: ast.Return | ast.Yield | ast.YieldFrom) -> None:
        if node.value is not None:
            self.returned = [*self.returned, *self.visit(node.value)]

    visit_Yield = visit_YieldFrom = visit_Return


def _attributes(thing: Any) -> Things:
    return relevant(value for name, value in getattr(thing, "__dict__", {}).items() if name[0] != "_")


def _match(targets: list[ast.expr], values: list[ast.expr]) -> bool:
    return len(targets) == len(values) and not any(isinstance(part, ast.Starred) for part in [*targets, *values])
