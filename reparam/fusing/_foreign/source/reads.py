"""Find layers whose weights are read by other code, so that they must not be replaced."""

from __future__ import annotations

from contextlib import suppress
from types import MethodType

from torch import nn

from .uses import ModuleUses


def readers(model: nn.Module) -> dict[int, str]:
    """For each layer, by id, the name of a module whose forward or `train` reads its weights, in either mode."""
    modes = {module: module.training for module in model.modules()}
    found: dict[int, str] = {}
    try:
        for mode in (False, True):
            for module in modes:
                module.training = mode
            for name, module in model.named_modules():
                for key in _read_by(module) - {id(module)}:
                    found.setdefault(key, f"{name} ({type(module).__name__})".lstrip())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found


def _read_by(module: nn.Module) -> set[int]:
    uses = ModuleUses(set())
    with suppress(Exception):  # unexpected code: what was found so far is still true
        uses.forward_of(module, True)
        if type(module).train is not nn.Module.train:
            uses.call(MethodType(type(module).train, module), [], {})
    return uses.read
