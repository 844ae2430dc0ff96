"""Copies of modules in eval mode, with the same tensors or others, to read or run without touching the model."""

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
    """Copy a module in eval mode with other tensors. Its buffers are never shared, since a forward may write to them.

    Args:
        module: any module.
        make: makes a tensor of the copy from one of the module.
        quietly: whether to set eval mode without calling `eval()`, in which some modules compute their kernels.
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
    """A copy in float64 and eval mode, on the same device if it has float64."""
    return copied_with(module, in_float64)


def shared_eval(model: nn.Module) -> nn.Module:
    """A copy of the modules in eval mode, which shares the parameters of `model`."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    memo |= {id(tensor): tensor.detach().clone() for tensor in model.buffers()}  # since a forward may write to them
    return copy.deepcopy(model, memo | same_hooks(model)).eval()


def without_hooks(module: nn.Module) -> nn.Module:
    """Remove all hooks from a copy and from the modules inside it, so that they do not run."""
    for part in module.modules():
        for name, table in vars(part).items():
            if "_hooks" in name and isinstance(table, dict):
                vars(part)[name] = type(table)()
    return module


def numbers(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Values of both signs, small and large, to run a module on; the same in every call."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn * torch.linspace(0.5, 8, shape[-1], dtype=torch.float64)).to(like)
