"""Images of PIL as arrays, with what belongs to them."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ...errors import SpecError


class Upright(NamedTuple):
    """Pixels as one looks at them."""

    pixels: np.ndarray
    """(H, W) or (H, W, C), uint8 or uint16; grey, grey and alpha, RGB, or RGB and alpha."""
    info: dict[Any, Any]
    """As of PIL: profile, EXIF, dpi, ..."""


def from_pil(image: Image.Image) -> Upright:
    """Turned upright; palettes, CMYK and the like become RGB, and a colour that stands for transparency alpha.

    Raises:
        SpecError: for several frames, floats, more than 16 bits, or a profile of CMYK that cannot be used.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the photo of a camera, with another one after it
        raise SpecError(f"the image has {frames} frames; pass one of them, as image.copy() is after image.seek()")
    if image.mode == "LAB" or (image.mode == "CMYK" and "icc_profile" in image.info):
        image = _in_srgb(image)
    image = ImageOps.exif_transpose(image)
    mode, info = _mode(image), image.info.copy()
    pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    info.pop("transparency", None)  # which is alpha now
    if image.mode.startswith("I"):
        if pixels.min() < 0 or pixels.max() > 65535 or "transparency" in image.info:
            raise SpecError(
                f"the image holds {pixels.min()} to {pixels.max()}"
                + (", one of which is transparent" if "transparency" in image.info else "")
                + ", and read are images of PIL of at most 16 bits, without transparency; pass an array of uint16"
            )
        pixels = pixels.astype(np.uint16)
    return Upright(pixels, info)


def _in_srgb(image: Image.Image) -> Image.Image:
    profile, srgb = image.info.get("icc_profile"), ImageCms.createProfile("sRGB")
    source: Any = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(profile or b"")
    try:
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except ImageCms.PyCMSError as error:
        raise SpecError(
            f"the image is {image.mode} with a profile that cannot be used ({error}); convert it to RGB"
        ) from error
    assert converted is not None  # which is of a conversion in place
    converted.info.pop("icc_profile", None)  # of colours that it has no more
    return converted


def _mode(image: Image.Image) -> str:
    if image.mode == "F":
        raise SpecError("the image is of floats, whose range nobody knows; pass a numpy array of 0 to 1 in its place")
    if image.mode.startswith("I"):
        return image.mode
    see_through = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    grey = image.mode in ("1", "L", "LA", "La")
    return ("LA" if see_through else "L") if grey else ("RGBA" if see_through else "RGB")


def to_pil(pixels: np.ndarray, info: dict[Any, Any]) -> Image.Image:
    """An image of PIL, with what belongs to it in its `info`."""
    image = Image.fromarray(pixels)
    image.info.update(info)
    return image
