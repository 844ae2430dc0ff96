"""Images of any kind as tensors (N, C, H, W), and tensors as values of 0 to 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SpecError

MAX_PIXELS = 1_000_000_000
"""Of an image file; one that claims more is rather some kilobytes that would fill a disc."""
_WHITE = {torch.uint8: 255, torch.uint16: 65535}
_KINDS = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")


def of_pil(image: object) -> bool:
    """Whether it is an image of PIL, which need not be installed."""
    return type(image).__module__.partition(".")[0] == "PIL"


def planes_of(image: Any) -> Tensor:
    """The values of an image, or of a batch: gray, gray and alpha, RGB, or RGB and alpha; not copied if possible.

    Raises:
        SpecError: for another kind of image.
    """
    if of_pil(image):
        from .images import from_pil  # PIL is there, as the image is

        image, _ = from_pil(image)
    if isinstance(image, Tensor):
        wanted, fits, channels = (
            "a tensor must be (C, H, W) or (N, C, H, W)",
            image.ndim in (3, 4),
            [*image.shape][-3:-2],
        )
    elif isinstance(image, np.ndarray):
        wanted, fits, channels = "an array must be (H, W) or (H, W, C)", image.ndim in (2, 3), [*image.shape, 1][2:3]
    else:
        raise SpecError(f"an image must be a PIL.Image, a numpy array or a tensor, but got {type(image).__name__}")
    if not fits or channels[0] not in (1, 2, 3, 4) or 0 in image.shape:
        raise SpecError(f"{wanted} with C of 1 to 4, and not empty, but got {tuple(image.shape)}")
    if (kind := getattr(image.dtype, "name", str(image.dtype)).removeprefix("torch.")) not in _KINDS:
        advice = "convert it to 0 and 255 in uint8" if kind == "bool" else "convert it to one of them"
        raise SpecError(
            f"an image must be uint8, uint16 or floats of 0 to 1, but got {kind} of {image.min()} to {image.max()}; "
            f"{advice}"
        )
    if isinstance(image, Tensor):
        return image.detach().reshape(-1, *image.shape[-3:])
    native = np.require(image, image.dtype.newbyteorder("="), ["C", "W"])
    return torch.from_numpy(native).reshape(*image.shape[:2], -1).permute(2, 0, 1)[None]


def like(image: Any, large: Tensor) -> Any:
    """The enlarged planes as the kind of array or tensor that the image is."""
    if isinstance(image, Tensor):
        return large if image.ndim == 4 else large[0]
    return large[0].permute(1, 2, 0).numpy().reshape(*large.shape[2:], *image.shape[2:]).astype(image.dtype, copy=False)


def white_of(planes: Tensor) -> int:
    """The largest value, in the units of the image."""
    return _WHITE.get(planes.dtype, 1)


def floats_of(part: Tensor) -> Tensor:
    """A part (N, C, h, w) in float32 of 0 to 1, where it is.

    Raises:
        SpecError: for floats of another range. Half of it on either side is let through: interpolation leaves the range
            by some of that, and so does another network.
    """
    x = part.to(torch.float32, memory_format=torch.contiguous_format)
    if (white := white_of(part)) > 1:
        return x / white
    if ((x < -0.5) | (x > 1.5)).any():
        low, high = np.nanmin(x.cpu()), np.nanmax(x.cpu())
        raise SpecError(f"an image of floats must have values of 0 to 1, but got {low:g} to {high:g}; scale it first")
    return x


def around(planes: Tensor, margin: int) -> Tensor:
    """With so many pixels more at each end, which are those of the other end."""
    if not margin:
        return planes
    rows, columns = (torch.arange(-margin, size + margin, device=planes.device) % size for size in planes.shape[2:])
    bits = planes.view(torch.int16) if planes.dtype == torch.uint16 else planes  # which older torch cannot index
    return bits[:, :, rows[:, None], columns].view(planes.dtype)
