"""Which modules a forward that cannot be traced gets hold of, worked out from its source.

A batch norm may go into a layer inside of a part only if the part is used as a whole. Where a forward cannot be traced,
its source still says which modules it calls: `self.p(x)` uses p as a whole, `self.p[0](x)` uses the first part of p
without the others. Names stand for the modules that they may mean, and loops, containers, methods and functions are
followed. A module that is handed on to code that is not known may be used in any way, and so may all parts of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .scope import Scope
from .things import CONTAINERS, OF_TENSORS, Numbers, Things, cells, handed_out, hands_out, inside, key_of, relevant
from .trees import sources_of


def used_modules(modules: Iterable[nn.Module]) -> tuple[dict[int, nn.Module], set[int]]:
    """What the forwards of these modules use, by id: what they call, and what they look into.

    Returns:
        The modules, and the ids of those that are called with other arguments than their forward asks for.
    """
    uses = ModuleUses()
    for module in modules:
        try:
            uses.forward_of(module)
        except Exception:  # code that is written in a way that is not thought of here
            uses.lose([module])
    return uses.used, uses.otherwise


class ModuleUses:
    def __init__(self) -> None:
        self.used: dict[int, nn.Module] = {}
        self.otherwise: set[int] = set()
        self._done: dict[Any, Things] = {}

    def lose(self, things: Iterable[Any]) -> None:
        """Takes all that is in these for used, as nothing is known of where they go."""
        for thing in things:
            if isinstance(thing, Numbers):
                self.lose([thing.module])
            elif isinstance(thing, MethodType):
                self.lose([thing.__self__])
            elif isinstance(thing, nn.Module):
                self.used.update((id(part), part) for part in thing.modules())
            elif isinstance(thing, CONTAINERS):
                self.lose(inside(thing))

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
        return relevant([getattr(thing, name, None)]) if isinstance(thing, ModuleType) else []

    def _of_module(self, module: nn.Module, name: str) -> Things:
        if name in module._modules:
            return relevant([module._modules[name]])
        value = vars(module).get(name, inspect.getattr_static(type(module), name, None))
        own = not _is_torchs(value)
        if name in module._parameters or name in module._buffers or isinstance(value, Tensor):
            self.used[id(module)] = module  # its numbers are read
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
            return self.call(function.func, [*(relevant([arg]) for arg in function.args), *args], named)
        owner = [function.__self__] if isinstance(function, MethodType) else []
        inner = inspect.unwrap(getattr(function, "__func__", function))
        given = [*owner, *(thing for things in [*args, *named.values()] for thing in things)]
        if inner is handed_out:
            return owner
        if isinstance(inner, FunctionType) and not _is_torchs(inner):
            return self._run(inner, [owner, *args] if owner else args, named)
        whole = _called_by_torch(inner, given)
        for module in whole:
            self.used[id(module)] = module
        self.lose(thing for thing in given if not whole)
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
            self._done[key] = self._done[key] + Scope(self, function, node.args, args, named).run(node)
        return self._done[key]


def _is_torchs(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").split(".")[0] == "torch"


def _called_by_torch(function: Any, given: Things) -> Things:
    """What a function of torch's calls, if it is known to do nothing else with modules."""
    modules = [thing for thing in given if isinstance(thing, nn.Module)]
    if function is nn.Sequential.forward:
        return inside(modules[0])
    is_known = _is_torchs(function) and getattr(function, "__name__", "") in ("forward", "checkpoint", "fork")
    return modules if is_known and len(modules) == len(given) else []
