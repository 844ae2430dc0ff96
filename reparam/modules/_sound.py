"""Numbers of which no kernel can be made."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn


def unsound(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Why no kernel can be made of tensors, by their keys in a state dict: not finite, or a variance below zero."""
    return {name: why for name, tensor in tensors.items() if (why := _why_unsound(name, tensor))}


def unsound_in(module: nn.Module, name: str = "") -> dict[str, str]:
    """The same of the parameters and buffers of a module of this dotted name."""
    named = chain(module.named_parameters(), module.named_buffers())
    return unsound({f"{name}.{key}".removeprefix("."): tensor for key, tensor in named})


def _why_unsound(name: str, tensor: Tensor) -> str | None:
    if tensor.is_meta or not tensor.is_floating_point():
        return None
    whole = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))  # of one that is not, the sum is not
    if not whole.isfinite() and (bad := tensor.numel() - int(tensor.isfinite().sum())):
        return f"{bad} of its {tensor.numel()} values are not finite; the training diverged, or the file is damaged"
    if name.endswith("running_var") and tensor.numel() and float(tensor.min()) < 0:
        return f"it holds a variance of {float(tensor.min()):.3g}, and none is below zero; the file is damaged"
    return None
