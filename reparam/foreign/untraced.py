"""Which modules a forward that cannot be traced gets hold of, worked out from its source.

A batch norm may go into a layer inside of a part only if the part is used as a whole. Where a forward cannot be traced,
its source still says which modules it calls: `self.p(x)` uses p as a whole, `self.p[0](x)` uses the first part of p
without the others. Names stand for the modules that they may mean, and loops, containers, methods and functions are
followed. A module that is handed on to code that is not known may be used in any way, and so may all parts of it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .sources import sources_of

Things = list[Any]
"""What an expression may mean, as far as that matters: modules, functions, and lists, tuples and dicts of these."""

_OF_TENSORS = ("dtype", "device", "shape", "ndim", "is_cuda", "requires_grad")
_LISTING = {"zip", "enumerate", "reversed", "sorted", "list", "tuple", "iter", "next", "filter", "set"}
_HARMLESS = {"len", "isinstance", "hasattr", "type", "id", "callable", "print", "range", "str", "bool"}


def used_modules(modules: Iterable[nn.Module]) -> tuple[dict[int, nn.Module], set[int]]:
    """What the forwards of these modules use, by id: what they call, and what they look into.

    Returns:
        The modules, and the ids of those that are called with other arguments than their forward asks for.
    """
    uses = _Uses()
    for module in modules:
        try:
            uses.forward_of(module)
        except Exception:  # code that is written in a way that is not thought of here
            uses.lose([module])
    return uses.used, uses.otherwise


class _Numbers:
    """The parameters of a module, of which only dtype and device are asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


class _Uses:
    def __init__(self) -> None:
        self.used: dict[int, nn.Module] = {}
        self.otherwise: set[int] = set()
        self._done: dict[Any, Things] = {}

    def lose(self, things: Iterable[Any]) -> None:
        """Takes all that is in these for used, as nothing is known of where they go."""
        for thing in things:
            if isinstance(thing, _Numbers):
                self.lose([thing.module])
            elif isinstance(thing, MethodType):
                self.lose([thing.__self__])
            elif isinstance(thing, nn.Module):
                self.used.update((id(part), part) for part in thing.modules())
            elif isinstance(thing, _CONTAINERS):
                self.lose(_inside(thing))

    def forward_of(self, module: nn.Module) -> None:
        """Follows what a module does."""
        if type(module).forward is not nn.Module.forward:  # lists and dicts of modules have none
            self.lose(self._call_function(MethodType(type(module).forward, module), [], {}))
        if "forward" in vars(module):
            self.lose([module])

    def members(self, thing: Any) -> Things:
        """What is in a container."""
        if isinstance(thing, nn.Module) and not isinstance(thing, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            self.lose([thing])  # a class of somebody's own, which may hand out anything
        return _inside(thing)

    def attribute(self, thing: Any, name: str) -> Things:
        """What `thing.name` may mean."""
        if isinstance(thing, nn.Module):
            return self._of_module(thing, name)
        if isinstance(thing, _Numbers):
            if name not in _OF_TENSORS:
                self.lose([thing])
            return []
        if isinstance(thing, _CONTAINERS):
            return [_hands_out(_inside(thing), name == "items")]
        return _relevant([getattr(thing, name, None)]) if isinstance(thing, ModuleType) else []

    def _of_module(self, module: nn.Module, name: str) -> Things:
        if name in module._modules:
            return _relevant([module._modules[name]])
        value = vars(module).get(name, inspect.getattr_static(type(module), name, None))
        own = not _is_torchs(value)
        if name in module._parameters or name in module._buffers or isinstance(value, Tensor):
            self.used[id(module)] = module  # its numbers are read
            return []
        if name in ("forward", "__call__"):
            return [module]
        if not own and name in ("parameters", "buffers"):
            return [_hands_out([_Numbers(module)], False)]
        if not own and name in ("children", "values", "items", "named_children"):
            return [_hands_out(_inside(module), name in ("items", "named_children"))]
        if isinstance(value, property):
            return self.call(MethodType(value.fget, module), [], {})  # type: ignore[arg-type]
        if isinstance(value, (staticmethod, classmethod)):
            return [value.__func__]
        if isinstance(value, FunctionType) and name not in vars(module):
            return [MethodType(value, module)]
        if not isinstance(value, type):  # an object of somebody's own may hold modules
            self.lose(_relevant(getattr(value, "__dict__", {}).values()) if not _relevant([value]) else [])
        return _relevant([value])

    def call(self, function: Any, args: list[Things], named: dict[str, Things]) -> Things:
        """What a call may return."""
        if not isinstance(function, nn.Module):
            return self._call_function(function, args, named)
        self.used[id(function)] = function
        self.lose(thing for things in [*args, *named.values()] for thing in things)
        parameters = inspect.signature(function.forward).parameters.values()
        if named or len(args) > sum(parameter.default is parameter.empty for parameter in parameters):
            self.otherwise.add(id(function))
        return []

    def _call_function(self, function: Any, args: list[Things], named: dict[str, Things]) -> Things:
        if isinstance(function, partial):
            return self.call(function.func, [*(_relevant([arg]) for arg in function.args), *args], named)
        owner = [function.__self__] if isinstance(function, MethodType) else []
        inner = inspect.unwrap(getattr(function, "__func__", function))
        given = [*owner, *(thing for things in [*args, *named.values()] for thing in things)]
        if inner is _handed_out:
            return owner
        if isinstance(inner, FunctionType) and not _is_torchs(inner):
            return self._run(inner, [owner, *args] if owner else args, named)
        whole = _called_by_torch(inner, given)
        for module in whole:
            self.used[id(module)] = module
        self.lose(thing for thing in given if not whole)
        return []

    def _run(self, function: FunctionType, args: list[Things], named: dict[str, Things]) -> Things:
        key = function.__code__, tuple(map(_key, args)), tuple((name, _key(things)) for name, things in named.items())
        if key in self._done:
            return self._done[key]
        self._done[key] = []
        nodes = sources_of(function.__code__)
        if not nodes:
            self.lose(thing for things in [*args, *named.values(), *_cells(function).values()] for thing in things)
        for node in nodes:
            self._done[key] = self._done[key] + _Scope(self, function, node.args, args, named).run(node)
        return self._done[key]


def _is_torchs(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").split(".")[0] == "torch"


def _called_by_torch(function: Any, given: Things) -> Things:
    """What a function of torch's calls, if it is known to do nothing else with modules."""
    modules = [thing for thing in given if isinstance(thing, nn.Module)]
    if function is nn.Sequential.forward:
        return _inside(modules[0])
    is_known = _is_torchs(function) and getattr(function, "__name__", "") in ("forward", "checkpoint", "fork")
    return modules if is_known and len(modules) == len(given) else []


def _handed_out() -> None:
    """Stands for methods that hand out what is in a container."""


def _hands_out(things: Things, in_pairs: bool) -> MethodType:
    return MethodType(_handed_out, [tuple(things)] if in_pairs else things)


def _inside(thing: Any) -> Things:
    if isinstance(thing, _Numbers):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.children())
    return _relevant(thing.values() if isinstance(thing, dict) else thing if isinstance(thing, _CONTAINERS) else [])


_CONTAINERS = (list, tuple, set, dict)
_KINDS = (nn.Module, FunctionType, MethodType, partial, ModuleType, _Numbers)


def _relevant(values: Iterable[Any]) -> Things:
    """Those that may lead to a module."""
    return [
        value for value in values if isinstance(value, _KINDS) or (isinstance(value, _CONTAINERS) and _inside(value))
    ]


def _key(things: Things) -> Any:
    return tuple(_key(list(_inside(thing))) if isinstance(thing, _CONTAINERS) else id(thing) for thing in things)


def _cells(function: FunctionType) -> dict[str, Things]:
    """What a function has from the function that it was made in."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = _relevant([cell.cell_contents])
        except ValueError:  # not yet filled
            found[name] = []
    return found


class _Scope(ast.NodeVisitor):
    """The names in a function, and what they may mean."""

    def __init__(
        self, uses: _Uses, function: FunctionType, wanted: ast.arguments, args: list[Things], named: dict[str, Things]
    ) -> None:
        self.uses, self.function, self.returned = uses, function, Things()
        self.names: dict[str, Things] = _cells(function)
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
        return _relevant([self.function.__globals__.get(node.id)])

    def visit_Attribute(self, node: ast.Attribute) -> Things:
        source = node.value
        if node.attr in _OF_TENSORS and isinstance(source, ast.Attribute):  # as in self.conv.weight.dtype
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
            inside = [member for thing in given for member in self.uses.members(thing)]
            return inside if name == "next" else [[tuple(inside)] if name in ("zip", "enumerate") else inside]
        if name == "getattr" and isinstance(node.args[1], ast.Constant):
            return [found for thing in given for found in self.uses.attribute(thing, str(node.args[1].value))]
        if name == "getattr":
            return [found for thing in given for found in [*_inside(thing), *_relevant(vars(thing).values())]]
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
            self._bind(target, self.visit(node.value))

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
