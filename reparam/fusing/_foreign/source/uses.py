"""Find out from its source which modules an untraceable forward uses.

A batch norm may be merged into a layer inside a part only if the part is used as a whole. If a forward cannot be
traced, its source still says which modules it calls: `self.p(x)` uses p as a whole, `self.p[0](x)` uses the first part
of p without the others. Names stand for the modules that they may hold; loops, containers, methods and functions are
followed. A module that is passed to unknown code may be used in any way, and so may all its parts.
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
"""Python modules whose functions do not call their arguments."""


class Used(NamedTuple):
    """What forwards use, by the ids of modules."""

    modules: dict[int, nn.Module]
    """The modules that they call, and those that they look into."""
    otherwise: set[int]
    """Modules that are called with other than the required arguments."""
    sites: dict[int, set[ast.AST]]
    """The places where a module is called, for modules that are only called."""
    stored: set[str]
    """The names of attributes that are assigned to."""


def used_modules(modules: Iterable[nn.Module], before: Used | None = None) -> Used:
    """Find what the forwards of these modules use; `before` holds earlier results for some of them."""
    modules, known = list(modules), -1
    otherwise, stored = (set(before.otherwise), set(before.stored)) if before else (set[int](), set[str]())
    while known != len(otherwise) + len(stored):  # such calls and assignments may turn up after they matter
        known, uses = len(otherwise) + len(stored), ModuleUses(stored)
        for module in modules:
            try:
                uses.forward_of(module, id(module) not in otherwise)
            except Exception:  # unexpected code
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
        """Count everything inside these things as used, because it is unknown where they go."""
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
        """Record that a module is used other than by a call."""
        self.used[id(module)] = module
        self.looked.add(id(module))

    def forward_of(self, module: nn.Module, with_defaults: bool) -> None:
        """Follow the forward of a module, with its default arguments or with any."""
        if type(module).forward is not nn.Module.forward:  # lists and dicts of modules have none
            given: dict[str, Things] = {} if with_defaults else {"**": []}
            self.lose(self._call_function(MethodType(type(module).forward, module), [], given))
        if "forward" in vars(module):
            self.lose([module])

    def members(self, thing: Any) -> Things:
        """The contents of a container."""
        own = isinstance(thing, nn.Module) and not isinstance(thing, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        if own or isinstance(thing, Instance):
            self.lose([thing])  # a user's class, which may return anything
        return inside(thing)

    def attribute(self, thing: Any, name: str) -> Things:
        """The possible values of `thing.name`."""
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
        """The possible values of an attribute of a user's class, or of an object of it."""
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
            self.read.add(id(module))  # its values are read
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
        if not isinstance(value, type):  # a user's object may hold modules
            self.lose(relevant(getattr(value, "__dict__", {}).values()) if not relevant([value]) else [])
        return relevant([value])

    def call(self, function: Any, args: list[Things], named: dict[str, Things], site: ast.AST | None = None) -> Things:
        """Follow a call; returns what it may return."""
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
        """Create an object of a class that is written in Python and is not a module."""
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
    """The defaults of arguments that are not passed; none if `*` or `**` might pass them."""
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
    """Whether it belongs to torch or Python, whose source is not followed."""
    return _is_torchs(function) or _room(function) in sys.stdlib_module_names


def _called_by_torch(function: Any, given: Things) -> Things:
    """What a function of torch calls, if it is known to do nothing else with modules."""
    modules = [thing for thing in given if isinstance(thing, nn.Module)]
    if function is nn.Sequential.forward:
        return inside(modules[0])
    is_known = _is_torchs(function) and getattr(function, "__name__", "") in ("forward", "checkpoint", "fork")
    return modules if is_known and len(modules) == len(given) else []
