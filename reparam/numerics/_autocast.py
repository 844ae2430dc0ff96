"""Autocast: the input of a block is cast once, as torch casts the input of a convolution; its kernels are not cast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AVAILABLE = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia") if torch.amp.is_autocast_available(kind)
)
"""The devices that have autocast, looked up once: compilers before torch 2.13 cannot trace the call."""


def as_conv_input(x: Tensor) -> Tensor:
    """Cast x to the dtype that a convolution would use now, so that all branches save the same copy for backward."""
    kind = x.device.type
    if kind not in _AVAILABLE or not torch.is_autocast_enabled(kind):
        return x
    casts = x.is_floating_point() and x.dtype != torch.float64  # torch does not cast double precision either
    return x.to(torch.get_autocast_dtype(kind)) if casts else x


def no_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off: kernels are computed in the dtype of the parameters, and only the convolution is cast."""
    return torch.autocast(device_type, enabled=False) if device_type in _AVAILABLE else nullcontext()
