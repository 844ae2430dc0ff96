"""Fusing: plain convolutions in place of blocks, on request, in a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .errors import FuseError
from .foreign import Plan, add_foreign, add_neighbours, fixed_hooks, ready, survey
from .inspect import find_blocks, inspect_blocks, inspect_model

_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))]
_KEPT_HOOKS = [name for name in _HOOKS if name.startswith(("_forward", "_backward"))]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of DDP, DataParallel, torch.compile and AveragedModel, however nested."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel, AveragedModel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's OptimizedModule, known without importing the compiler
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def fuse(model: nn.Module, *, inplace: bool = False, batch_norms: bool | None = None) -> nn.Module:
    """Replaces every block of a model by the one convolution that it is equal to.

    Kernels are computed in float64 and rounded once. Each convolution keeps the dtype, device, memory format, mode,
    hooks and `requires_grad` of its block; a block used in several places becomes one convolution used in the same
    places. Wrappers (DDP, DataParallel, `torch.compile`, `AveragedModel`) are taken off. Fusing what is fused already
    gives a copy of it.

    Blocks are those of this library, modules of types registered with `kernel_of`, and the re-parameterizable modules
    of timm, RepVGG, MobileOne, DBB, ACNet, ECBSR and SPAN, which are known by what they hold. Such a module becomes
    a convolution as well or, if it has an activation or a gate, keeps its class and runs as the authors' inference
    form, with its keys. A linear module with a method `fuse`, `reparameterize` or `switch_to_deploy` becomes a
    convolution or a linear layer.

    Args:
        model: a model that holds blocks, or a block itself, in eval mode or with frozen batch norms.
        inplace: change `model` itself instead of a copy.
        batch_norms: whether batch norms outside of blocks go into the convolution or linear layer before them (or
            after them, where that pads nothing), which changes the keys of both. None: if the model holds no block of
            this library; next to one, other layers keep their keys, so that the model it was built from loads them.

    Returns:
        The fused copy, or `model` if `inplace`.

    Raises:
        FuseError: if there is nothing to fuse; if a batch norm that would go uses batch statistics or never saw a
            batch, each named; or if `inplace` is asked for a wrapped model or for a block itself. The model is
            unchanged then.

    Example:
        >>> import torch
        >>> from reparam import ECB
        >>> net = nn.Sequential(ECB(3, 8), nn.PReLU(8), ECB(8, 3)).eval()
        >>> x = torch.rand(1, 3, 16, 16)
        >>> torch.allclose(fuse(net)(x), net(x), atol=1e-5)
        True
    """
    inner = unwrap(model)
    if inplace and inner is not model:
        raise FuseError(
            f"cannot fuse a {type(model).__name__} in place, as the wrapper holds on to what would be replaced; fuse "
            "the model inside of it, or leave inplace=False for a fused copy without the wrapper"
        )
    plan = _plan(inner, batch_norms)
    if inplace:
        return _apply(inner, plan)
    # deepcopy asks its memo before it copies an object: so it puts the convolution wherever the block is referred to.
    memo: dict[int, Any] = fixed_hooks(inner)
    plan.fill(memo)
    made = {key: memo[key] for key in plan.replace}
    plain = copy.deepcopy(inner, memo)
    for edit in plan.edits:
        edit.apply(memo[id(edit.block.module)], partial(copy.deepcopy, memo=memo))
    _keep_all_hooks(inner, made, memo)
    return plain


def _plan(model: nn.Module, batch_norms: bool | None) -> Plan:
    """What becomes of the modules of a model.

    Raises:
        FuseError: if nothing does, or something cannot now.
    """
    blocks = find_blocks(model)
    found = survey(model, not blocks if batch_norms is None else batch_norms)
    nothing = not (blocks or found.blocks or found.neighbours or found.refused)
    if nothing and not any("fused_from" in vars(module) for module in model.modules()):
        raise FuseError(
            f"found no block to fuse in {type(model).__name__}; blocks are modules such as RepSRBlock, subclasses of "
            "reparam.Branch, types registered with kernel_of, and known modules of timm and others. "
            "inspect_model(model) lists what is found"
        )
    ours = {name: why for block in inspect_blocks(blocks) for name, why in block.problems.items()}
    if problems := [f"{name}: {why}" for name, why in {**ours, **found.problems()}.items()]:
        raise FuseError("cannot fuse the model:\n  " + "\n  ".join(problems))
    plan = Plan()
    add_foreign(plan, found.blocks.values())
    add_neighbours(plan, found.neighbours)
    for block in blocks.values():
        if id(block) not in plan.replace:
            plan.replace[id(block)] = partial(ready, block.to_conv())
    return plan


@contextmanager
def fused(model: nn.Module) -> Iterator[nn.Module]:
    """A fused copy in eval mode for the length of a `with`: for validation in the middle of training.

    The model may be in train mode: the copy uses the running statistics, as the model would in eval mode, and the
    model is not touched.

    Args:
        model: as for `fuse`.

    Raises:
        FuseError: if no block is found, or a batch norm of a block never saw a batch.

    Example:
        >>> import torch
        >>> from reparam import create_model
        >>> net = create_model("repsr_m1c8_x2").train()
        >>> x = torch.rand(2, 3, 12, 12)
        >>> _ = net(x)  # a training step
        >>> with fused(net) as plain, torch.no_grad():
        ...     y = plain(x)
        >>> net.training and torch.allclose(net.eval()(x), y, atol=1e-5)
        True
    """
    inner = unwrap(model)
    yield fuse(copy.deepcopy(inner, fixed_hooks(inner)).eval())


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, fused if there is anything to fuse.

    Raises:
        FuseError: if a batch norm of a block uses batch statistics or never saw a batch.
    """
    inner = unwrap(model)
    report = inspect_model(inner)
    return (fuse(inner) if report.blocks or report.batch_norms else copy.deepcopy(inner, fixed_hooks(inner))).eval()


def skeleton(model: nn.Module) -> nn.Module:
    """The structure that `fuse(model)` has, with fresh weights, in place: a model into which fused weights load."""
    plan = Plan()
    for block in find_blocks(model).values():
        conv: nn.Module = block.spec.new_conv()
        conv.fused_from = type(block).__name__  # type: ignore[assignment]
        plan.replace[id(block)] = partial(ready, conv)
    return _apply(model, plan)


def _apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Carries a plan out on the model itself."""
    if id(model) in plan.replace:
        raise FuseError(
            f"the model is itself a block ({type(model).__name__}), which cannot become another module in place; use "
            "the convolution that fuse(block) returns"
        )
    made = {key: make(_itself) for key, make in plan.replace.items()}
    _keep_all_hooks(model, made, None)
    replace(model, made)
    for edit in plan.edits:
        edit.apply(edit.block.module, _itself)
    return model


def _itself(module: nn.Module) -> nn.Module:
    return module


def replace(model: nn.Module, others: Mapping[int, nn.Module]) -> nn.Module:
    """Puts other modules, by the id of the one that they replace, wherever a model refers to it; in place."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in others:
                setattr(parent, name, others[id(child)])
    return model


def _keep_all_hooks(model: nn.Module, made: Mapping[int, nn.Module], memo: dict[int, Any] | None) -> None:
    for module in model.modules():
        if id(module) in made:
            keep_hooks(module, made[id(module)], memo)


def keep_hooks(old: nn.Module, new: nn.Module, memo: dict[int, Any] | None) -> None:
    """Hooks that others put on a module go on with the one in its place; copied, as deepcopy does, with a memo."""
    for name in _KEPT_HOOKS:
        hooks = vars(old)[name]
        vars(new)[name].update(hooks if memo is None else copy.deepcopy(hooks, memo))
