"""Values from which no kernel can be computed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn


def unsound(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Why no kernel can be computed from tensors, by state-dict key: values not finite, or a negative variance."""
    return {name: why for name, tensor in tensors.items() if (why := _why_unsound(name, tensor))}


def unsound_in(module: nn.Module, name: str = "") -> dict[str, str]:
    """The same for the parameters and buffers of a module with this dotted name."""
    named = chain(module.named_parameters(), module.named_buffers())
    return unsound({f"{name}.{key}".removeprefix("."): tensor for key, tensor in named})


def _why_unsound(name: str, tensor: Tensor) -> str | None:
    if tensor.is_meta or not tensor.is_floating_point():
        return None
    whole = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))  # one NaN or inf reaches the sum
    if not whole.isfinite() and (bad := tensor.numel() - int(tensor.isfinite().sum())):
        return f"{bad} of its {tensor.numel()} values are not finite; the training diverged, or the file is damaged"
    if name.endswith("running_var") and tensor.numel() and float(tensor.min()) < 0:
        return f"it holds a variance of {float(tensor.min()):.3g}, below zero; the file is damaged"
    return None
