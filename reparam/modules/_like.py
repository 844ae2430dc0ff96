"""What dtype and device a module has."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def tensor_like(module: nn.Module) -> Tensor:
    """A tensor that tells dtype and device of a module: its first of real numbers; without any, float32 on the CPU."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0, device="cpu"))
