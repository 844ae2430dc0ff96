"""Hooks that others put on modules, when these are copied or replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Hook = TypeVar("Hook", bound=Callable[..., Any])

_KEPT = [name for name in vars(nn.Module()) if name.startswith(("_forward", "_backward")) and "_hooks" in name]
_CALLED = ("_forward_hooks", "_forward_pre_hooks")
_QUIET: list[Any] = []


def quiet(hook: Hook) -> Hook:
    """Says of a hook that what a module computes is the same without it."""
    _QUIET.append(hook)
    return hook


def that_matter(*tables: Mapping[int, Any]) -> list[Any]:
    """The hooks in these tables of a module that are not quiet."""
    return [hook for table in tables for hook in table.values() if not any(hook is one for one in _QUIET)]


def copy_module(model: Module) -> Module:
    """A deepcopy whose hooks act on the copy; one that cannot be copied, as it holds a lock, goes on as it is."""
    memo: dict[int, Any] = {}
    leave_hooks_out(model, memo)
    copied = copy.deepcopy(model, memo)
    put_hooks_in(model, memo)
    return copied


def same_hooks(model: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy with which copies hold the hooks themselves, whatever these refer to."""
    return {id(table): table for table in _tables(model)}


def leave_hooks_out(model: nn.Module, memo: dict[int, Any]) -> None:
    """Makes a deepcopy with this memo leave the tables of hooks empty, until there is something for hooks to act on."""
    memo.update((id(table), type(table)()) for table in _tables(model))


def put_hooks_in(model: nn.Module, memo: dict[int, Any]) -> None:
    """Fills the tables of the copy that was made with this memo."""
    for table in _tables(model):
        memo[id(table)].update((key, _copied(hook, memo)) for key, hook in table.items())


def _tables(model: nn.Module) -> list[dict[int, Any]]:
    named = (pair for module in model.modules() for pair in vars(module).items())
    return [table for name, table in named if "_hooks" in name and isinstance(table, dict)]


def _copied(hook: Any, memo: dict[int, Any]) -> Any:
    trial = dict(memo)  # as a deepcopy that fails leaves half of its objects behind
    try:
        copied = copy.deepcopy(hook, trial)
    except Exception:  # what a hook is bound to may hold anything
        return hook
    memo.setdefault(id(memo), []).append(trial.pop(id(trial), None))  # where deepcopy keeps what must live on
    memo.update(trial)
    return copied


def keep_hooks(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None) -> None:
    """Hooks that others put on a module go on with the one in its place; copied, as deepcopy does, with a memo."""
    for name in _KEPT:
        hooks = vars(old)[name]
        vars(new)[name].update(hooks if memo is None else {key: _copied(hook, memo) for key, hook in hooks.items()})


def drop_shared_hooks(copied: nn.Module, original: nn.Module) -> None:
    """Takes off a copy what it would call of the original's: functions, which no deepcopy copies, may tell the user."""
    shared = {id(hook) for module in original.modules() for name in _CALLED for hook in vars(module)[name].values()}
    for module in copied.modules():
        for name in _CALLED:
            table = vars(module)[name]
            for key in [key for key, hook in table.items() if id(hook) in shared]:
                del table[key]
