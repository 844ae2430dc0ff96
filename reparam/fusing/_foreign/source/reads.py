"""Which layers' numbers are read by code that is not their own, so that they must stay what they are."""

from __future__ import annotations

from contextlib import suppress
from types import MethodType

from torch import nn

from .uses import ModuleUses


def readers(model: nn.Module) -> dict[int, str]:
    """By the id of a layer, the name of a module whose forward or `train` reads its numbers, in either mode."""
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
    with suppress(Exception):  # code that is written in a way that is not thought of: what was found is true
        uses.forward_of(module, True)
        if type(module).train is not nn.Module.train:
            uses.call(MethodType(type(module).train, module), [], {})
    return uses.read
