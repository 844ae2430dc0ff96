"""Images of any kind as arrays, and arrays as a network takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SpecError


def of_pil(image: object) -> bool:
    """Whether it is an image of PIL, which need not be installed."""
    return type(image).__module__.partition(".")[0] == "PIL"


def arrays_of(image: Any) -> list[np.ndarray]:
    """The pixels of an image of any kind, (H, W) or (H, W, C), or of all that a tensor holds.

    Raises:
        SpecError: for another kind of image.
    """
    if isinstance(image, np.ndarray):
        return [image]
    if isinstance(image, Tensor):
        if image.dim() not in (3, 4):
            raise SpecError(f"a tensor must be (C, H, W) or (N, C, H, W), but got {tuple(image.shape)}")
        image = image.detach().cpu()
        images = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        return [one.transpose(1, 2, 0) for one in images.reshape(-1, *image.shape[-3:])]
    if of_pil(image):
        from .images import from_pil  # PIL is there, as the image is

        return [from_pil(image).pixels]
    raise SpecError(f"an image is a PIL.Image, a numpy array or a tensor, but got {type(image).__name__}")


def whole_of(image: np.ndarray) -> np.ndarray:
    """The image as (H, W, C), if it is one."""
    whole = np.atleast_3d(image) if image.ndim in (2, 3) else image
    if whole.ndim != 3 or whole.shape[2] not in (1, 2, 3, 4) or not whole.size:
        raise SpecError(f"an array is (H, W) or (H, W, C) with C of 1 to 4, and not empty, but got {image.shape}")
    if whole.dtype not in (np.uint8, np.uint16) and not np.issubdtype(whole.dtype, np.floating):
        raise SpecError(f"an array must be uint8, uint16 or floats of 0 to 1, but got {image.dtype}")
    return whole


def largest_of(image: np.ndarray) -> int:
    """White, in the units of the image."""
    return np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1


def floats_of(part: np.ndarray) -> np.ndarray:
    """A part (h, w, C) as (1, C, h, w), float32 of 0 to 1."""
    return np.ascontiguousarray(part.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(largest_of(part))


def file_reader() -> Any:
    """The module that reads and writes image files.

    Raises:
        SpecError: if Pillow is not installed, which it needs.
    """
    try:
        from . import images
    except ModuleNotFoundError as error:
        raise SpecError(f"image files need the package {error.name!r}: pip install 'reparam[upscale]'") from None
    return images
