"""Hooks on modules that are copied or replaced."""

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
    """Mark a hook as one that does not change what a module computes."""
    _QUIET.append(hook)
    return hook


def that_matter(*tables: Mapping[int, Any]) -> list[Any]:
    """The hooks in these tables that are not marked quiet."""
    return [hook for table in tables for hook in table.values() if not any(hook is one for one in _QUIET)]


def copy_module(model: Module) -> Module:
    """Deepcopy a model so that its hooks act on the copy; a hook that cannot be copied (a lock in it) is shared."""
    memo: dict[int, Any] = {}
    leave_hooks_out(model, memo)
    copied = copy.deepcopy(model, memo)
    put_hooks_in(model, memo)
    return copied


def same_hooks(model: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy that makes copies share the original's hooks."""
    return {id(table): table for table in _tables(model)}


def leave_hooks_out(model: nn.Module, memo: dict[int, Any]) -> None:
    """Make a deepcopy with this memo leave the tables of hooks empty; `put_hooks_in` fills them afterwards."""
    memo.update((id(table), type(table)()) for table in _tables(model))


def put_hooks_in(model: nn.Module, memo: dict[int, Any]) -> None:
    """Fill the tables of hooks of the copy that was made with this memo."""
    for table in _tables(model):
        memo[id(table)].update((key, _copied(hook, memo)) for key, hook in table.items())


def _tables(model: nn.Module) -> list[dict[int, Any]]:
    named = (pair for module in model.modules() for pair in vars(module).items())
    return [table for name, table in named if "_hooks" in name and isinstance(table, dict)]


def _copied(hook: Any, memo: dict[int, Any]) -> Any:
    trial = dict(memo)  # a deepcopy that fails leaves half-made objects in its memo
    try:
        copied = copy.deepcopy(hook, trial)
    except Exception:  # a hook may hold any object, and copying it raise any error
        return hook
    memo.setdefault(id(memo), []).append(trial.pop(id(trial), None))  # where deepcopy keeps objects alive
    memo.update(trial)
    return copied


def keep_hooks(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None) -> None:
    """Give the hooks of a module to its replacement; with a memo, as copies, like deepcopy."""
    for name in _KEPT:
        hooks = vars(old)[name]
        vars(new)[name].update(hooks if memo is None else {key: _copied(hook, memo) for key, hook in hooks.items()})


def drop_shared_hooks(copied: nn.Module, original: nn.Module) -> None:
    """Remove hooks from a copy that it shares with the original: functions, which deepcopy does not copy."""
    shared = {id(hook) for module in original.modules() for name in _CALLED for hook in vars(module)[name].values()}
    for module in copied.modules():
        for name in _CALLED:
            table = vars(module)[name]
            for key in [key for key, hook in table.items() if id(hook) in shared]:
                del table[key]
