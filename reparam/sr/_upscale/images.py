"""Images of files, of PIL and of arrays, with what belongs to them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ...errors import SpecError
from ...files._writing import written

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""What can be written."""
_DEEP = (".png", ".tif", ".tiff")
"""What can hold 16 bits."""
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""What is read, in PIL's words: of others, nobody has looked at what their headers may say."""
_ADVICE = "convert it to a PNG of RGB or RGBA"
_ORIENTATION = 0x0112


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, in the order of their names.

    Raises:
        FileNotFoundError: if there is none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image in {folder} (looked for {', '.join(SUFFIXES)})")
    return files


class Picture(NamedTuple):
    """Pixels and what belongs to them."""

    pixels: np.ndarray
    """(H, W, C), uint8 or uint16; grey, grey and alpha, RGB, or RGB and alpha."""
    icc_profile: bytes | None = None
    exif: Image.Exif | None = None

    @property
    def info(self) -> dict:
        """For `Image.save`."""
        parts = {"icc_profile": self.icc_profile, "exif": self.exif.tobytes() if self.exif else None}
        return {key: value for key, value in parts.items() if value}


def from_pil(image: Image.Image) -> Picture:
    """Turned upright; palettes, CMYK and the like become RGB, and a colour that stands for transparency alpha."""
    if getattr(image, "n_frames", 1) > 1:
        raise SpecError(f"the image has {image.n_frames} frames; pass one of them")  # type: ignore[attr-defined]  # asked above
    icc_profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and icc_profile:
        image = _in_srgb(image, icc_profile)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise SpecError(f"the image holds {pixels.min()} to {pixels.max()}, which is more than 16 bits")
        pixels = pixels.astype(np.uint16)
    else:
        mode = _mode(image)
        icc_profile = None if image.mode in ("CMYK", "LAB") else image.info.get("icc_profile")
        pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    return Picture(np.atleast_3d(pixels), icc_profile, image.getexif() or None)


def _in_srgb(image: Image.Image, icc_profile: bytes) -> Image.Image:
    try:
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)), srgb, outputMode="RGB"
        )
    except ImageCms.PyCMSError as error:
        raise SpecError(f"the image is CMYK with a profile that cannot be used ({error}); {_ADVICE}") from error
    assert converted is not None  # which is of a conversion in place
    converted.info.pop("icc_profile", None)  # of colours that it has no more
    return converted


def _mode(image: Image.Image) -> str:
    if image.mode == "F":
        raise SpecError("the image is of floats, whose range nobody knows; pass a numpy array of 0 to 1 in its place")
    see_through = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    grey = image.mode in ("1", "L", "LA", "La")
    return ("LA" if see_through else "L") if grey else ("RGBA" if see_through else "RGB")


def to_pil(picture: Picture) -> Image.Image:
    """An image of PIL, with profile and EXIF in its `info`."""
    pixels = picture.pixels
    if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
        raise SpecError("PIL has no images of 16 bits and more than one channel; pass and take a numpy array")
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.info.update(picture.info)
    return image


def read_picture(path: Path) -> Picture:
    """Reads an image file.

    Raises:
        SpecError: if the file is no image, damaged, of several frames, or declares what is not read rightly here; if it
            has 16 bits and more than one channel, and the package opencv-python-headless is not there.
    """
    try:
        # As a stream: PIL maps a file of a path into memory, where it mixes up height and width of a turned TIFF.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            is_tiff, deep = image.format == "TIFF", _is_deep(image, path)
            image.load()
            picture = from_pil(image)
            deep = deep and image.mode[:1] != "I"
    except SpecError as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    except (UnidentifiedImageError, SyntaxError, ValueError, OSError, Image.DecompressionBombError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise SpecError(f"cannot read {path} as an image: {error} (read are {', '.join(_FORMATS)})") from error
    if not deep:
        return picture
    pixels = _opencv().imread(os.fspath(path), -1)
    if pixels is None or pixels.dtype != np.uint16:
        raise SpecError(f"cannot read {path} with its 16 bits; convert it to a 16-bit PNG")
    pixels = np.atleast_3d(pixels)
    swapped = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.shape[2] > 2 else pixels
    if is_tiff:  # of which only the upright are read
        return picture._replace(pixels=np.ascontiguousarray(swapped))
    with Image.open(path) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    return picture._replace(pixels=np.ascontiguousarray(_upright(swapped, orientation)))


def _is_deep(image: Image.Image, path: Path) -> bool:
    """Whether a file has 16 bits, if all that its header declares is such as is read rightly here."""
    if image.format == "TIFF":
        return _is_deep_tiff(image.tag_v2)  # type: ignore[attr-defined]  # of TIFF only
    if image.format != "PNG":
        return False
    with path.open("rb") as file:
        depth, kind = file.read(26)[24:]  # in the header
    if depth == 16 and (kind == 4 or "transparency" in image.info):
        what = "grey with alpha" if kind == 4 else "with a colour that stands for transparency"
        raise SpecError(f"a PNG of 16 bits, {what}, is not read; {_ADVICE}")
    return depth == 16


def _is_deep_tiff(tags: Any) -> bool:
    bits = tuple(tags.get(258, (1,)))
    deep = bits[0] == 16
    known: dict[int, tuple[Any, set[Any]]] = {  # by the tag's number, and what it is if it is not there
        258: (1, {(1,), (2,), (4,), (8,) * len(bits), (16,) * len(bits)}),
        262: (1, {1, 2} if deep else {0, 1, 2, 3, 5, 6, 8}),
        274: (1, {1} if deep and len(bits) > 1 else set(range(1, 9))),
        284: (1, {1} if deep else {1, 2}),
        338: ((), {(), (2,)} if deep else {(), (1,), (2,)}),
        339: (1, {1, (1,) * len(bits)}),
    }
    names = ("BitsPerSample", "PhotometricInterpretation", "Orientation", "PlanarConfiguration", "ExtraSamples")
    for (tag, (usual, values)), name in zip(known.items(), (*names, "SampleFormat")):
        if (value := tags.get(tag, usual)) not in values and value != usual:
            depth = "of 16 bits " if deep else ""
            raise SpecError(f"a TIFF {depth}with {name}={value} is not read; {_ADVICE}")
    return deep


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As `ImageOps.exif_transpose`, for arrays."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def write_picture(picture: Picture, path: Path) -> None:
    """Writes an image file, whole or not at all; 16 bits stay in PNG and TIFF, and become 8 in other formats.

    Raises:
        SpecError: for a suffix that is not one of `SUFFIXES`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SpecError(f"cannot write {path.name}: the suffix must be one of {', '.join(SUFFIXES)}")
    pixels = picture.pixels
    if suffix in (".jpg", ".jpeg", ".bmp") and pixels.shape[2] in (2, 4):
        raise SpecError(f"cannot write {path.name}: {suffix} has no transparency, which the image has; use .png")
    if pixels.dtype == np.uint16 and suffix not in _DEEP:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    with written(path) as unfinished:
        if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
            _write_deep(picture, unfinished)
        else:
            lossy: dict[str, Any] = {"quality": 95} if suffix in (".jpg", ".jpeg", ".webp") else {}
            kept = picture.info if suffix != ".bmp" else {}
            to_pil(picture._replace(pixels=pixels)).save(unfinished, **lossy, **kept)


def _write_deep(picture: Picture, path: Path) -> None:
    cv2 = _opencv()
    pixels = picture.pixels
    if pixels.shape[2] == 2:
        pixels = pixels[:, :, [0, 0, 0, 1]]
    pixels = pixels[:, :, [2, 1, 0, *range(3, pixels.shape[2])]]
    kinds = {"icc_profile": cv2.IMAGE_METADATA_ICCP, "exif": cv2.IMAGE_METADATA_EXIF}
    # PIL puts a header before EXIF that belongs to JPEG only.
    parts = {
        kinds[key]: np.frombuffer(value.removeprefix(b"Exif\0\0"), np.uint8) for key, value in picture.info.items()
    }
    if not cv2.imwriteWithMetadata(os.fspath(path), pixels, list(parts), list(parts.values())):
        raise OSError(f"cannot write {path}")


def _opencv():
    try:
        import cv2
    except ModuleNotFoundError:
        raise SpecError(
            "an image of 16 bits and more than one channel needs the package opencv-python-headless: "
            "pip install 'reparam[deep]'"
        ) from None
    return cv2
