"""Images of any kind as planes (N, C, H, W) of numbers, and planes as a network takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SpecError

Planes = np.ndarray | Tensor
"""(N, C, H, W): grey, grey and alpha, RGB, or RGB and alpha."""
MAX_PIXELS = 1_000_000_000
"""Of an image file; one that claims more is rather some kilobytes that would fill a disc."""
_LARGEST = {"uint8": 255, "uint16": 65535, "torch.uint8": 255, "torch.uint16": 65535}


def of_pil(image: object) -> bool:
    """Whether it is an image of PIL, which need not be installed."""
    return type(image).__module__.partition(".")[0] == "PIL"


def planes_of(image: Any) -> Planes:
    """The numbers of an image, or of a batch of them, where they are.

    Raises:
        SpecError: for another kind of image.
    """
    if of_pil(image):
        from .images import from_pil  # PIL is there, as the image is

        return planes_of(from_pil(image).pixels)
    if isinstance(image, Tensor):
        if image.dim() not in (3, 4):
            raise SpecError(f"a tensor must be (C, H, W) or (N, C, H, W), but got {tuple(image.shape)}")
        planes: Planes = image.detach().reshape(-1, *image.shape[-3:]) if image.numel() else image
    elif isinstance(image, np.ndarray):
        planes = np.atleast_3d(image).transpose(2, 0, 1)[None] if image.ndim in (2, 3) else image.reshape(-1)
    else:
        raise SpecError(f"an image is a PIL.Image, a numpy array or a tensor, but got {type(image).__name__}")
    return _checked(planes, image)


def _checked(planes: Planes, image: Planes) -> Planes:
    if len(planes.shape) != 4 or planes.shape[1] not in (1, 2, 3, 4) or 0 in planes.shape:
        wanted = (
            "a tensor is (C, H, W) or (N, C, H, W)" if isinstance(image, Tensor) else "an array is (H, W) or (H, W, C)"
        )
        raise SpecError(f"{wanted} with C of 1 to 4, and not empty, but got {tuple(image.shape)}")
    if largest_of(planes) == 1 and not _is_float(planes):
        kind = str(planes.dtype).removeprefix("torch.")
        advice = "make 0 and 255 of it, in uint8" if kind == "bool" else "convert it to one of them"
        raise SpecError(
            f"an image must be uint8, uint16 or floats of 0 to 1, but got {kind} of {planes.min()} to {planes.max()}; "
            f"{advice}"
        )
    return planes


def _is_float(planes: Planes) -> bool:
    return planes.is_floating_point() if isinstance(planes, Tensor) else planes.dtype.kind == "f"


def largest_of(planes: Planes) -> int:
    """White, in the units of the image."""
    return _LARGEST.get(getattr(planes.dtype, "name", str(planes.dtype)), 1)  # the name says nothing of the byte order


def floats_of(part: Planes) -> Tensor:
    """A part (N, C, h, w), float32 of 0 to 1, where it is.

    Raises:
        SpecError: for floats of another range. Half of it on either side is let through: interpolation leaves the range
            by some of that, and so does another network.
    """
    x = part.float() if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.float32, order="C"))
    if (largest := largest_of(part)) > 1:
        return x / largest
    if ((x < -0.5) | (x > 1.5)).any():
        low, high = np.nanmin(x.cpu()), np.nanmax(x.cpu())
        raise SpecError(f"an image of floats must be of 0 to 1, but got {low:g} to {high:g}; scale it to that first")
    return x


def numpy_of(planes: Planes) -> np.ndarray:
    """The same numbers; bfloat16, which numpy has not, as float32."""
    if isinstance(planes, np.ndarray):
        return planes
    return (planes.float() if planes.dtype == torch.bfloat16 else planes).cpu().numpy()


def empty_like(planes: Planes, scale: int) -> Planes:
    """Room for the large image, of the same kind, the channels of an array beside each other."""
    count, channels, height, width = planes.shape
    if isinstance(planes, Tensor):
        return planes.new_empty(count, channels, scale * height, scale * width)
    return np.empty((count, scale * height, scale * width, channels), planes.dtype).transpose(0, 3, 1, 2)


def put(y: Tensor, large: Any) -> None:
    """Writes floats of 0 to 1 into a part of a large image; integers are rounded and clipped."""
    if (largest := largest_of(large)) > 1:
        y = (y * largest).round().clamp(0, largest)
    large[...] = y if isinstance(large, Tensor) else y.cpu().numpy()


def around(planes: Planes, margin: int) -> Planes:
    """With so many pixels more at each end, which are those of the other end."""
    if not margin:
        return planes
    rows, columns = (np.arange(-margin, size + margin) % size for size in planes.shape[2:])
    return planes[:, :, rows[:, None], columns]


def shaped_as(large: Planes, image: Planes) -> Any:
    """The large image with the axes of the small one."""
    if isinstance(large, Tensor):
        return large if image.ndim == 4 else large[0]
    whole = large[0].transpose(1, 2, 0)
    return whole[:, :, 0] if image.ndim == 2 else whole
