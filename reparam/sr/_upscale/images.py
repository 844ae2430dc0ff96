"""PIL images as arrays, with their metadata."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ...errors import SpecError

_EXACT: Any = 0x100  # a number in the older, a `Flags` in the newer
"""Of LittleCMS: no table in place of the sums, which is off by 3 of 255 for CIELAB."""


def from_pil(image: Image.Image) -> tuple[np.ndarray, dict[Any, Any]]:
    """The pixels, turned upright, and the `info` of the image: profile, EXIF, dpi.

    Returns:
        (H, W) or (H, W, C), uint8 or uint16: gray, gray and alpha, RGB, or RGB and alpha; palettes, CMYK and the like
        as RGB, and a color that stands for transparency as alpha.

    Raises:
        SpecError: for several frames, floats, more than 16 bits, or a profile of CMYK that cannot be used.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the photo of a camera, with another one after it
        raise SpecError(f"the image has {frames} frames; pass one of them: image.copy() after image.seek()")
    if image.mode == "LAB" or (image.mode == "CMYK" and "icc_profile" in image.info):
        image = _in_srgb(image)
    image = ImageOps.exif_transpose(image)
    info = image.info.copy()
    info.pop("transparency", None)  # which is alpha
    if not image.mode.startswith(("I", "F")):
        mode = ("L" if image.mode[0] in "1L" else "RGB") + "A" * image.has_transparency_data
        return np.asarray(image if mode == image.mode else image.convert(mode)), info
    pixels = np.asarray(image)
    if image.mode == "F" or image.has_transparency_data or pixels.min() < 0 or pixels.max() > 65535:
        see_through = ", one of which is transparent," if image.has_transparency_data else ""
        raise SpecError(
            f"the PIL image of mode {image.mode} holds {pixels.min()} to {pixels.max()}{see_through} and only 8 bits, "
            "or 16 without transparency, are supported; pass a numpy array, uint16 or floats of 0 to 1"
        )
    return pixels.astype(np.uint16), info


def _in_srgb(image: Image.Image) -> Image.Image:
    profile, srgb = image.info.get("icc_profile"), ImageCms.createProfile("sRGB")
    source: Any = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(profile or b"")
    try:
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB", flags=_EXACT)
    except ImageCms.PyCMSError as error:
        raise SpecError(
            f"the image is {image.mode} with a profile that cannot be used ({error}); convert it to RGB"
        ) from error
    assert converted is not None  # which is of a conversion in place
    converted.info.pop("icc_profile", None)  # of colors that it has no more
    return converted


def to_pil(pixels: np.ndarray, info: dict[Any, Any]) -> Image.Image:
    """An image of PIL, with what belongs to it in its `info`."""
    image = Image.fromarray(pixels)
    image.info.update(info)
    return image
