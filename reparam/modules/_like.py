"""The dtype and device of a module."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def tensor_like(module: nn.Module) -> Tensor:
    """A tensor with the dtype and device of a module: its first floating-point one, or else float32 on the CPU."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, device="cpu"))
