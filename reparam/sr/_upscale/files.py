"""Open image files with libvips, and find those in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from PIL.BmpImagePlugin import BmpImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ...errors import SpecError
from .arrays import MAX_PIXELS
from .chunks import kept_chunks, png_chunks, tiff_says
from .images import from_pil
from .photo import FORMATS, READ, WHITE, Photo, pixels_in, reading

SUFFIXES = (*FORMATS, ".gif")
"""What is read."""
_MOVING = ("gifload", "webpload")
_STRICT = {"fail_on": "error", "revalidate": True}
_COLORS = ("b-w", "grey16", "srgb", "rgb", "rgb16")
_ADVICE = "convert it to a PNG of RGB or RGBA"


def images_in(folder: Path, recursive: bool = False, without: Path | None = None) -> tuple[list[Path], list[Path]]:
    """List the image files of a folder, and its other files, sorted by name.

    Args:
        folder: where to look.
        recursive: whether to look in its subfolders too.
        without: a subfolder to leave out.
    """
    kinds: tuple[list[Path], list[Path]] = [], []
    for path in sorted(folder.glob("**/*" if recursive else "*")):
        if path.is_file() and not (without and path.resolve().is_relative_to(without.resolve())):
            kinds[path.suffix.lower() not in SUFFIXES].append(path)
    return kinds


def check_suffix(path: Path) -> None:
    """Refuse a suffix that cannot be written.

    Raises:
        SpecError: for a suffix that is not one of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise SpecError(f"cannot write {path.name}: the suffix must be one of {', '.join(FORMATS)}")


def read_picture(path: Path) -> np.ndarray:
    """The pixels of an image file, (H, W, C).

    Raises:
        SpecError: as `read_photo`, and for several frames.
    """
    photo = read_photo(path)
    if photo.count > 1:
        raise SpecError(f"{path} has {photo.count} frames; extract one of them")
    with reading(path):
        return pixels_in(photo.image)


def read_photo(path: Path, max_pixels: int = MAX_PIXELS) -> Photo:
    """Open an image file; pixels are read when needed.

    Raises:
        SpecError: if the file is no image, damaged, larger than `max_pixels`, or of a kind that is not supported.
    """
    chunks = png_chunks(path)
    with reading(path):
        try:
            image = pyvips.Image.new_from_file(str(path), **_STRICT)
        except pyvips.Error as error:
            if (kind := _of_pillow(path, error)) is None:
                raise
            with kind(path) as plain:
                _check_size(plain.width, plain.height, 1, max_pixels)
                return Photo(path, pyvips.Image.new_from_array(from_pil(plain)[0]), 1, [])
        loader, count = image.get("vips-loader"), image.get_n_pages()
        if loader == "uhdrload":  # of the image and what screens of more range add to it
            image, loader = pyvips.Image.jpegload(str(path), **_STRICT), "jpegload"
        if loader not in READ:
            raise SpecError(f"{loader.removesuffix('load')} files are not supported; {_ADVICE}")
        if b"acTL" in dict(chunks) or (count > 1 and loader not in _MOVING):
            what = f"a file of {count} pages" if count > 1 else "an animated PNG"
            raise SpecError(f"{what} is not supported; extract one of them, or convert it to an animated WebP")
        planar, exif = tiff_says(path)
        if image.bands == 2 and planar:  # which libvips takes for gray and alpha in turns
            raise SpecError(
                f"a TIFF with gray and alpha in separate planes (PlanarConfiguration=2) is not supported; {_ADVICE}"
            )
        _check_size(image.width, image.height, count, max_pixels)
        if count > 1:
            image = pyvips.Image.new_from_file(str(path), n=-1, **_STRICT)
        image = _plain(image)
        if exif:
            image = image.copy()
            image.set_type(pyvips.GValue.blob_type, "exif-data", exif)
        return Photo(path, image, count, kept_chunks(chunks))


def _of_pillow(path: Path, error: pyvips.Error) -> Any:
    """The reader for what libvips does not open: BMP, and TIFF in 8-bit CIELAB."""
    with path.open("rb") as file:
        if file.read(2) == b"BM":
            return BmpImageFile
    return TiffImageFile if "labq" in error.detail else None


def _check_size(width: int, height: int, count: int, max_pixels: int) -> None:
    if (pixels := count * width * height) > max_pixels:
        raise SpecError(
            f"its {width} x {height} pixels{f' in {count} frames' * (count > 1)} are {pixels:,}, more than "
            f"max_pixels={max_pixels:,}; raise it if you trust the file"
        )


def _plain(image: pyvips.Image) -> pyvips.Image:
    """Upright, gray or RGB, of 8 or 16 bits, with one alpha at the most."""
    image = image.autorot()
    depth = 16 if image.format == "ushort" else 8
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    elif image.interpretation == "labs":
        image = image.colourspace("lab").icc_export(output_profile="srgb", depth=16)
    if image.interpretation not in _COLORS or image.format not in WHITE or image.bands > 4:
        raise SpecError(
            f"an image of {image.bands} channels ({image.interpretation}) of type {image.format} is not "
            f"supported; {_ADVICE}"
        )
    return image
