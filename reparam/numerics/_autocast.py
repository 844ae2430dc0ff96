"""Autocast: the input of a block is cast once, as torch casts that of a convolution, and its kernels are not."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AVAILABLE = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia") if torch.amp.is_autocast_available(kind)
)
"""The devices that have autocast, asked once: compilers before torch 2.13 cannot see through the question."""


def as_conv_input(x: Tensor) -> Tensor:
    """x in the dtype in which a convolution would take it now, so that all branches keep one copy for backward."""
    kind = x.device.type
    if kind not in _AVAILABLE or not torch.is_autocast_enabled(kind):
        return x
    casts = x.is_floating_point() and x.dtype != torch.float64  # as torch, which leaves double precision alone
    return x.to(torch.get_autocast_dtype(kind)) if casts else x


def no_autocast(device_type: str) -> AbstractContextManager:
    """The algebra of kernels stays in the dtype of the parameters; only the convolution is cast."""
    return torch.autocast(device_type, enabled=False) if device_type in _AVAILABLE else nullcontext()
