"""Copies of modules in eval mode, with their own tensors or others: to be read or run, the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ...modules._hooks import same_hooks
from ...numerics._precision import in_float64


def copied_with(module: nn.Module, make: Callable[[Tensor], Tensor], quietly: bool = False) -> Any:
    """A copy of a module in eval mode with other tensors; its buffers, which a forward may write to, are its own.

    Args:
        module: any.
        make: the tensors of the copy.
        quietly: whether not to tell the modules that they are in eval mode, of which some work their kernels out then.
    """
    memo = same_hooks(module)
    for tensor in chain(module.parameters(), module.buffers()):
        made = make(tensor).detach() if tensor.is_floating_point() else tensor
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(made, requires_grad=False)
        else:
            memo[id(tensor)] = made.clone()
    copied = copy.deepcopy(module, memo)
    if not quietly:
        return copied.eval()
    for part in copied.modules():
        part.training = False
    return copied


def exact(module: nn.Module) -> Any:
    """A copy in float64 and eval mode, on the same device if that knows float64."""
    return copied_with(module, in_float64)


def shared_eval(model: nn.Module) -> nn.Module:
    """A copy in eval mode of the modules, which hold the very tensors of `model`."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    memo |= {id(tensor): tensor.detach().clone() for tensor in model.buffers()}  # which a forward may write to
    return copy.deepcopy(model, memo | same_hooks(model)).eval()


def without_hooks(module: nn.Module) -> nn.Module:
    """Takes all hooks off a copy, and off what is in it: they are nobody's business to run."""
    for part in module.modules():
        for name, table in vars(part).items():
            if "_hooks" in name and isinstance(table, dict):
                vars(part)[name] = type(table)()
    return module


def numbers(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers of both signs, small and large, to run a module on; always the same ones."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn * torch.linspace(0.5, 8, shape[-1], dtype=torch.float64)).to(like)
