"""Carry out a plan in a copy of the model, or in the model itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ..blocks._at_once import no_more_without_blocks
from ..errors import FuseError
from ..modules._hooks import keep_hooks, leave_hooks_out, put_hooks_in
from ._foreign import Plan


def fused_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out a plan on a copy."""
    # deepcopy looks in its memo before it copies an object, so it puts the convolution wherever the block is used.
    memo: dict[int, Any] = {}
    leave_hooks_out(model, memo)
    plan.fill(memo)
    made = {key: memo[key] for key in plan.makes()}
    plain = copy.deepcopy(model, memo)
    for edit in plan.edits:
        edit.apply(memo[id(edit.block.module)], partial(copy.deepcopy, memo=memo))
    put_hooks_in(model, memo)
    _keep_all_hooks(model, made, memo)
    no_more_without_blocks(plain)
    return plain


def fuse_in_place(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out a plan on the model itself."""
    if id(model) in plan.makes():
        raise FuseError(
            f"cannot fuse in place: the model is itself a block ({type(model).__name__}), which would have to become "
            "another module; use the convolution that fuse(block) returns"
        )
    made = {key: make(_itself) for key, make in plan.makes().items()}
    _keep_all_hooks(model, made, None)
    for holder in [model, *made.values()]:
        exchange(holder, made)
    for edit in plan.edits:
        edit.apply(edit.block.module, _itself)
    no_more_without_blocks(model)
    return model


def _itself(module: nn.Module) -> nn.Module:
    return module


def exchange(model: nn.Module, others: Mapping[int, nn.Module]) -> nn.Module:
    """Replace modules by others, given by the id of the replaced one, wherever a model uses them; in place."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in others:
                setattr(parent, name, others[id(child)])
    return model


def _keep_all_hooks(model: nn.Module, made: Mapping[int, nn.Module], memo: dict[int, Any] | None) -> None:
    for module in model.modules():
        if id(module) in made:
            keep_hooks(module, made[id(module)], memo)
