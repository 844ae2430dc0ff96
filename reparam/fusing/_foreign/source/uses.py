"""Which modules a forward that cannot be traced gets hold of, worked out from its source.

A batch norm may go into a layer inside of a part only if the part is used as a whole. Where a forward cannot be traced,
its source still says which modules it calls: `self.p(x)` uses p as a whole, `self.p[0](x)` uses the first part of p
without the others. Names stand for the modules that they may mean, and loops, containers, methods and functions are
followed. A module that is handed on to code that is not known may be used in any way, and so may all parts of it.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from .known import PLAIN
from .scope import Scope
from .things import (
    CONTAINERS,
    OF_TENSORS,
    Fixed,
    Instance,
    Numbers,
    Things,
    cells,
    fixed,
    handed_out,
    hands_out,
    inside,
    key_of,
    relevant,
)
from .trees import sources_of

_ONLY_ASK = ("inspect", "logging", "warnings")
"""Modules of Python that call nothing of what they are given."""


class Used(NamedTuple):
    """What forwards use, by id."""

    modules: dict[int, nn.Module]
    """What they call, and what they look into."""
    otherwise: set[int]
    """What is called with other arguments than its forward asks for."""
    sites: dict[int, set[ast.AST]]
    """Where a module is called, of those with which nothing else is done."""
    stored: set[str]
    """The names of attributes that are assigned to."""


def used_modules(modules: Iterable[nn.Module], before: Used | None = None) -> Used:
    """What the forwards of these modules use; `before` is what some of them were found to use."""
    modules, known = list(modules), -1
    otherwise, stored = (set(before.otherwise), set(before.stored)) if before else (set[int](), set[str]())
    while known != len(otherwise) + len(stored):  # what is given otherwise, or changed, shows after it is needed
        known, uses = len(otherwise) + len(stored), ModuleUses(stored)
        for module in modules:
            try:
                uses.forward_of(module, id(module) not in otherwise)
            except Exception:  # code that is written in a way that is not thought of here
                uses.lose([module])
        otherwise = otherwise | uses.otherwise
    sites = {key: where for key, where in uses.sites.items() if key not in uses.looked}
    return Used(uses.used, otherwise, sites, stored)


class ModuleUses:
    def __init__(self, stored: set[str]) -> None:
        self.stored = stored
        self.used: dict[int, nn.Module] = {}
        self.looked: set[int] = set()
        self.read: set[int] = set()
        self.sites: dict[int, set[ast.AST]] = {}
        self.otherwise: set[int] = set()
        self._done: dict[Any, Things] = {}
        self._made: dict[Any, Instance] = {}

    def lose(self, things: Iterable[Any]) -> None:
        """Takes all that is in these for used, as nothing is known of where they go."""
        for thing in things:
            if isinstance(thing, Numbers):
                self.lose([thing.module])
            elif isinstance(thing, MethodType):
                self.lose([thing.__self__])
            elif isinstance(thing, nn.Module):
                for part in thing.modules():
                    self._look(part)
            elif isinstance(thing, (Instance, *CONTAINERS)):
                self.lose(inside(thing))

    def _look(self, module: nn.Module) -> None:
        """Something is done with it that is not a call."""
        self.used[id(module)] = module
        self.looked.add(id(module))

    def forward_of(self, module: nn.Module, with_defaults: bool) -> None:
        """Follows what a module does, with the default arguments of its forward, or with any."""
        if type(module).forward is not nn.Module.forward:  # lists and dicts of modules have none
            given: dict[str, Things] = {} if with_defaults else {"**": []}
            self.lose(self._call_function(MethodType(type(module).forward, module), [], given))
        if "forward" in vars(module):
            self.lose([module])

    def members(self, thing: Any) -> Things:
        """What is in a container."""
        own = isinstance(thing, nn.Module) and not isinstance(thing, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if own or isinstance(thing, Instance):
            self.lose([thing])  # a class of somebody's own, which may hand out anything
        return inside(thing)

    def attribute(self, thing: Any, name: str) -> Things:
        """What `thing.name` may mean."""
        if isinstance(thing, nn.Module):
            return self._of_module(thing, name)
        if isinstance(thing, Numbers):
            if name not in OF_TENSORS:
                self.lose([thing])
            return []
        if isinstance(thing, CONTAINERS):
            return [hands_out(inside(thing), name == "items")]
        if isinstance(thing, (Instance, type)):
            return self._of_class(thing, name)
        return relevant([vars(thing).get(name)]) if isinstance(thing, ModuleType) else []

    def _of_class(self, thing: Any, name: str) -> Things:
        """An attribute of a class of somebody's own, or of an object of it."""
        kind, own = (thing, []) if isinstance(thing, type) else (thing.kind, thing.kept.get(name, []))
        value = inspect.getattr_static(kind, name, None)
        if isinstance(value, property) and kind is not thing:
            return [*own, *self.call(MethodType(value.fget, thing), [], {})]  # type: ignore[arg-type]  # as below
        if isinstance(value, (staticmethod, classmethod)):
            value = MethodType(value.__func__, kind) if isinstance(value, classmethod) else value.__func__
        elif isinstance(value, FunctionType) and kind is not thing:
            value = MethodType(value, thing)
        elif value is None and not own and hasattr(kind, "__getattr__"):
            self.lose([thing])
        return [*own, *relevant([value])]

    def _of_module(self, module: nn.Module, name: str) -> Things:
        if name in module._modules:
            return relevant([module._modules[name]])
        value = vars(module).get(name, inspect.getattr_static(type(module), name, None))
        own = not _is_torchs(value)
        if name in module._parameters or name in module._buffers or isinstance(value, Tensor):
            self._look(module)
            self.read.add(id(module))  # its numbers are
            return []
        if name in ("forward", "__call__"):
            return [module]
        if not own and name in ("parameters", "buffers"):
            return [hands_out([Numbers(module)], False)]
        if not own and name in ("children", "values", "items", "named_children"):
            return [hands_out(inside(module), name in ("items", "named_children"))]
        if isinstance(value, property):
            return self.call(MethodType(value.fget, module), [], {})  # type: ignore[arg-type]  # a property that is read has one
        if isinstance(value, (staticmethod, classmethod)):
            return [value.__func__]
        if isinstance(value, FunctionType) and name not in vars(module):
            return [MethodType(value, module)]
        if not isinstance(value, type):  # an object of somebody's own may hold modules
            self.lose(relevant(getattr(value, "__dict__", {}).values()) if not relevant([value]) else [])
        return relevant([value])

    def call(self, function: Any, args: list[Things], named: dict[str, Things], site: ast.AST | None = None) -> Things:
        """What a call may return."""
        if isinstance(function, type):
            return self._make(function, args, named)
        if isinstance(function, Instance):
            return [one for method in self._of_class(function, "__call__") for one in self.call(method, args, named)]
        if isinstance(function, CONTAINERS):  # as of a slice of a Sequential
            self.lose([function])
        if not isinstance(function, nn.Module):
            return self._call_function(function, args, named)
        if site is None:
            self._look(function)
        self.used[id(function)] = function
        self.sites.setdefault(id(function), set()).update([site] if site else [])
        self.lose(thing for things in [*args, *named.values()] for thing in things)
        parameters = inspect.signature(function.forward).parameters.values()
        if named or len(args) > sum(parameter.default is parameter.empty for parameter in parameters):
            self.otherwise.add(id(function))
        return []

    def _make(self, kind: type, args: list[Things], named: dict[str, Things]) -> Things:
        """An object of a class, if it is written in Python and no module."""
        key = (kind, tuple(map(key_of, args)), tuple((name, key_of(things)) for name, things in named.items()))
        if key not in self._made:
            made = self._made[key] = Instance(kind)
            start = inspect.getattr_static(kind, "__init__", None)
            if isinstance(start, FunctionType) and not issubclass(kind, nn.Module) and not _is_library(start):
                self._run(start, [[made], *args], named)
            else:
                self.lose(thing for things in [*args, *named.values()] for thing in things)
        return [self._made[key]] if self._made[key].kept else []

    def _call_function(self, function: Any, args: list[Things], named: dict[str, Things]) -> Things:
        if isinstance(function, partial):
            return self.call(function.func, [*(relevant([arg]) for arg in function.args), *args], named)
        owner = [function.__self__] if isinstance(function, MethodType) else []
        inner = inspect.unwrap(getattr(function, "__func__", function))
        given = [*owner, *(one for things in [*args, *named.values()] for one in things if not isinstance(one, Fixed))]
        if inner is handed_out:
            self.lose(thing for thing in given if thing not in owner)  # as what is appended
            return owner
        if isinstance(inner, FunctionType) and not _is_library(inner):
            return self._run(inner, [owner, *args] if owner else args, named)
        whole = _called_by_torch(inner, given)
        for module in whole:
            self._look(module)
        self.lose(thing for thing in given if not whole and _room(inner) not in _ONLY_ASK)
        return []

    def _run(self, function: FunctionType, args: list[Things], named: dict[str, Things]) -> Things:
        key = (
            function.__code__,
            tuple(map(key_of, args)),
            tuple((name, key_of(things)) for name, things in named.items()),
        )
        if key in self._done:
            return self._done[key]
        self._done[key] = []
        nodes = sources_of(function.__code__)
        if not nodes:
            self.lose(thing for things in [*args, *named.values(), *cells(function).values()] for thing in things)
        for node in nodes:
            scope = Scope(self, function, node, args, named, _defaults(function, args, named))
            self._done[key] = self._done[key] + scope.run()
        return self._done[key]


def _defaults(function: FunctionType, args: list[Things], named: dict[str, Things]) -> dict[str, Things]:
    """What arguments are that are not given; nothing is known of them if any might be given by `*` or `**`."""
    if "**" in named:
        return {}
    parameters = enumerate(inspect.signature(function).parameters.values())
    missing = {one.name: one.default for place, one in parameters if place >= len(args) and one.name not in named}
    missing = {name: value for name, value in missing.items() if value is not inspect.Parameter.empty}
    return {name: [fixed(value)] if isinstance(value, PLAIN) else relevant([value]) for name, value in missing.items()}


def _room(function: Any) -> str:
    return (getattr(function, "__module__", None) or "").split(".")[0]


def _is_torchs(function: Any) -> bool:
    return _room(function) == "torch"


def _is_library(function: Any) -> bool:
    """Whether it is of torch or of Python, whose source is not followed."""
    return _is_torchs(function) or _room(function) in sys.stdlib_module_names


def _called_by_torch(function: Any, given: Things) -> Things:
    """What a function of torch's calls, if it is known to do nothing else with modules."""
    modules = [thing for thing in given if isinstance(thing, nn.Module)]
    if function is nn.Sequential.forward:
        return inside(modules[0])
    is_known = _is_torchs(function) and getattr(function, "__name__", "") in ("forward", "checkpoint", "fork")
    return modules if is_known and len(modules) == len(given) else []
