"""How far a pixel reaches in a network."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from .errors import SpecError

_LARGEST = 512


@torch.no_grad()
def receptive_radius(model: nn.Module, channels: int) -> int:
    r"""How many pixels around it a pixel of the output may depend on, in pixels of the input.

    A NaN at one pixel of the input goes wherever that pixel is read, even through weights of zero; the radius is how
    far it comes, in the worst direction. The output may be larger than the input by a whole factor: then a pixel of it
    belongs to the input pixel that it lies in.

    Args:
        model: any module from (N, C, H, W) to (N, D, s * H, s * W); it is copied, and the copy runs in float64 on the
            CPU in eval mode.
        channels: C.

    Raises:
        SpecError: if the reach is not local (global pooling, attention), or the output is not a multiple of the input.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 5, padding=2))
        >>> receptive_radius(net, 1)
        3
    """
    model = copy.deepcopy(model).to("cpu", torch.float64).eval()
    size = 17
    while size <= _LARGEST:
        reach = _reach(model, channels, size)
        if reach < size // 2:
            return reach
        size = 2 * size + 1
    raise SpecError(
        f"a pixel of {type(model).__name__} reaches farther than {_LARGEST // 2} pixels (global pooling or attention "
        "do): it has no receptive radius, and can only be run on whole images"
    )


def _reach(model: nn.Module, channels: int, size: int) -> int:
    middle = size // 2
    x = torch.zeros(1, channels, size, size, dtype=torch.float64)
    x[..., middle, middle] = math.nan
    y: Tensor = model(x)
    scale, rest = divmod(y.shape[-1], size)
    if rest or y.shape[2:] != (scale * size, scale * size):
        raise SpecError(f"{type(model).__name__} makes {tuple(y.shape[2:])} of {size} x {size} pixels, no multiple")
    touched = y.isnan().any(1)[0].nonzero() // scale  # rows and columns, in pixels of the input
    return int((touched - middle).abs().max())
