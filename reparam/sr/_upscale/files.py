"""Image files, read and written by libvips strip by strip, with all that belongs to an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyvips

from ...errors import SpecError
from ...files._writing import written
from .arrays import MAX_PIXELS
from .chunks import COLORS, Chunks, insert_chunks, is_lossless_webp, is_planar_tiff, kept_chunks, png_chunks
from .images import from_pil, to_pil
from .tiled import Read, Shape


class _Format(NamedTuple):
    """What a file of a suffix can hold, and how it is written."""

    options: dict[str, Any]
    side: int = 2**31 - 1
    """Pixels at the most."""
    alpha: bool = True
    deep: bool = False
    moving: bool = False


_JPEG = _Format({"Q": 95}, side=65500, alpha=False)
_TIFF = _Format({"compression": "deflate", "predictor": "horizontal"}, deep=True)
FORMATS = {
    ".png": _Format({}, deep=True),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _Format({"Q": 95}, side=16383, moving=True),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _Format({}, alpha=False),
}
"""What can be written, by suffix."""
READ = (*FORMATS, ".gif")
"""What is read."""
_LOADERS = {"pngload": "PNG", "jpegload": "JPEG", "webpload": "WebP", "tiffload": "TIFF", "gifload": "GIF"}
"""Of libvips, those whose results are tested; BMP is PIL's."""
_CLASSIC = 2**31
"""Bytes up to which a TIFF surely fits into the 4 GB that all programs read."""
_COLORS = ("b-w", "grey16", "srgb", "rgb", "rgb16")
_WHITE = {"uchar": 255, "ushort": 65535}
_KEPT = re.compile(
    "exif-(?!ifd.-Orientation)|xmp-data|iptc-data|icc-profile-data|photoshop-data|resolution-unit|delay|loop"
)
_ADVICE = "convert it to a PNG of RGB or RGBA"


def images_in(folder: Path, recursive: bool = False, without: Path | None = None) -> tuple[list[Path], list[Path]]:
    """The image files of a folder and its other files, in the order of their names.

    Args:
        folder: where.
        recursive: whether in the folders in it, too.
        without: but not in this one.
    """
    left_out, files = without and without.resolve(), []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and Path(place, name).resolve() != left_out]
        files += [Path(place, name) for name in names]
    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for file in sorted(files):
        kinds[file.suffix.lower() in READ].append(file)
    return kinds[True], kinds[False]


def check_suffix(path: Path) -> None:
    """Refuses what cannot be written.

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
        raise SpecError(f"{path} has {photo.count} frames; take one of them")
    with _reading(path):
        return _pixels(photo.image)


@dataclass(frozen=True)
class Photo:
    """What is in an image file."""

    path: Path
    image: pyvips.Image
    """Upright, grey or RGB, perhaps with alpha, of 8 or 16 bits; frames below each other."""
    count: int
    """Of frames."""
    chunks: Chunks
    """Of a PNG, what another one is to have as well."""

    @property
    def shape(self) -> Shape:
        """(1, C, H, W) of a frame."""
        return 1, self.image.bands, self.image.height // self.count, self.image.width

    def frames(self, margin: int) -> Iterator[Read]:
        """Readers of rows, of one frame after the other, with so much around it of the other end."""
        _, _, height, width = self.shape
        for index in range(self.count):
            frame = self.image.crop(0, index * height, width, height)
            yield _reader(
                self.path, frame.embed(margin, margin, width + 2 * margin, height + 2 * margin, extend="repeat")
            )

    def for_target(self, target: Path, scale: int) -> Photo:
        """What of it a file of this suffix is to hold; says now what could not be written later.

        Raises:
            SpecError: if the format cannot hold it.
        """
        kind, (_, _, height, width) = FORMATS[target.suffix.lower()], self.shape
        if scale * max(height, width) > kind.side:
            why = f"{scale * width} x {scale * height} pixels, and {target.suffix} holds at most {kind.side} on a side"
        elif self.count > 1 and not kind.moving:
            why = f"{self.count} frames, and {target.suffix} holds one"
        elif target.suffix.lower() != ".png" and (
            names := [name.decode() for name, _ in self.chunks if name in COLORS]
        ):
            why = f"colours as {', '.join(names)} say, which {target.suffix} has not"
        elif self.image.bands in (2, 4) and not kind.alpha:
            if self.image[-1].min() == _WHITE[self.image.format]:
                return replace(self, image=self.image[:-1])
            why = f"transparency, which {target.suffix} has not"
        else:
            return self
        advice = ".webp, or take one frame" if self.count > 1 else ".png"
        raise SpecError(f"cannot write {target.name}: it would have {why}; choose another suffix, such as {advice}")

    def write(self, strips: Iterable[np.ndarray], target: Path, scale: int) -> None:
        """Writes a large image, whole or not at all, with all that belongs to this one.

        Args:
            strips: of one frame after the other, from top to bottom.
            target: where to.
            scale: how much larger it is.
        """
        with (
            written(target) as unfinished,
            TemporaryDirectory(dir=unfinished.parent, ignore_cleanup_errors=True) as room,
        ):
            pixels = Path(room) / "pixels"  # which Windows keeps as long as it is mapped
            with pixels.open("wb") as file:  # and not in memory, where it would be the largest of all
                for strip in strips:
                    np.ascontiguousarray(strip[0].transpose(1, 2, 0)).tofile(file)
            try:
                self._save(self._large(pixels, scale), unfinished)
            except pyvips.Error as error:
                raise OSError(f"cannot write {target}: {error.detail.strip()}") from error

    def _large(self, pixels: Path, scale: int) -> pyvips.Image:
        small = self.image
        large = pyvips.Image.rawload(
            str(pixels), scale * small.width, scale * small.height, small.bands, format=small.format
        )
        x, y = (72 / 25.4 if dots == 1 else dots for dots in (small.xres, small.yres))  # 1 is what nobody said
        large = large.copy(interpretation=small.interpretation, xres=x, yres=y)
        for name in filter(_KEPT.match, small.get_fields()):
            value = small.get(name)
            if name == "xmp-data":  # it may say once more how the file was turned
                value = re.sub(rb"(tiff:Orientation\W{1,2})[2-8]", rb"\g<1>1", value)
            large.set_type(small.get_typeof(name), name, value)
        if large.get_typeof("exif-data"):  # where it would stay what it was
            large.set_type(pyvips.GValue.gint_type, "orientation", 1)
        large.set_type(pyvips.GValue.gint_type, "page-height", large.height // self.count)
        return large

    def _save(self, large: pyvips.Image, path: Path) -> None:
        kind, suffix = FORMATS[path.suffix.lower()], path.suffix.lower()
        if large.format == "ushort" and not kind.deep:
            large = (large / 257).rint().cast("uchar").copy(interpretation="b-w" if large.bands < 3 else "srgb")
        if suffix == ".bmp":
            to_pil(_pixels(large).squeeze(2) if large.bands == 1 else _pixels(large), {}).save(path)
        elif suffix == ".webp" and is_lossless_webp(self.path):
            large.write_to_file(str(path), lossless=True)
        else:
            big = {"bigtiff": True} if kind is _TIFF and _bytes(large) > _CLASSIC else {}
            large.write_to_file(str(path), **kind.options, **big)
        if suffix == ".png" and self.chunks:
            insert_chunks(path, self.chunks)


def _bytes(image: pyvips.Image) -> int:
    return image.width * image.height * image.bands * (2 if image.format == "ushort" else 1)


def read_photo(path: Path, max_pixels: int = MAX_PIXELS) -> Photo:
    """Opens an image file; pixels are read when they are asked for.

    Raises:
        SpecError: if the file is no image, damaged, larger than `max_pixels`, or holds what is not read rightly here.
    """
    chunks = png_chunks(path)
    with _reading(path):
        image = _opened(path)
        count = image.get("n-pages") if image.get_typeof("n-pages") else 1
        moving = count > 1 and image.get("vips-loader") in ("gifload", "webpload")
        if b"acTL" in dict(chunks) or (count > 1 and not moving):
            what = f"a file of {count} pages" if count > 1 else "an animated PNG"
            raise SpecError(f"{what} is not read; take one of them, or make an animated WebP of it")
        if (pixels := count * image.width * image.height) > max_pixels:
            raise SpecError(
                f"its {image.width} x {image.height} pixels{f' in {count} frames' * moving} are {pixels:,}, more than "
                f"max_pixels={max_pixels:,}; if it is no bomb, allow more"
            )
        if moving:
            image = pyvips.Image.new_from_file(str(path), n=-1, fail_on="error", revalidate=True)
        return Photo(path, _plain(image), count, kept_chunks(chunks))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    except pyvips.Error as error:
        what = ", ".join([*_LOADERS.values(), "BMP"])
        raise SpecError(f"cannot read {path} as an image: {error.detail.strip()} (read are {what})") from error


def _opened(path: Path) -> pyvips.Image:
    with path.open("rb") as file:  # which says what is wrong with the file itself
        head = file.read(2)
    if head == b"BM":
        try:
            with PIL.Image.open(path, formats=["BMP"]) as image:
                pixels = np.atleast_3d(from_pil(image).pixels)
                return pyvips.Image.new_from_array(pixels, interpretation="b-w" if pixels.shape[2] == 1 else "srgb")
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise SpecError(f"it is a damaged BMP ({error})") from error
    image = pyvips.Image.new_from_file(str(path), fail_on="error", revalidate=True)
    if image.get("vips-loader") == "uhdrload":  # of the image and what screens of more range add to it
        image = pyvips.Image.jpegload(str(path), fail_on="error", revalidate=True)
    if image.get("vips-loader") not in _LOADERS:
        what = image.get("vips-loader").removesuffix("load")
        raise SpecError(f"a file of the kind {what} is not read; {_ADVICE}")
    if image.bands == 2 and is_planar_tiff(path):  # which libvips takes for grey and alpha in turns
        raise SpecError(f"a TIFF of grey and alpha in separate planes (PlanarConfiguration=2) is not read; {_ADVICE}")
    return image


def _plain(image: pyvips.Image) -> pyvips.Image:
    """Upright, grey or RGB, of 8 or 16 bits, with one alpha at the most."""
    image = image.autorot()
    if image.interpretation == "cmyk" and image.format in _WHITE:
        depth = 16 if image.format == "ushort" else 8
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    if image.interpretation not in _COLORS or image.format not in _WHITE or image.bands > 4:
        raise SpecError(
            f"an image of {image.bands} channels, {image.interpretation}, in numbers of the kind {image.format} is not "
            f"read; {_ADVICE}"
        )
    return image


def _pixels(image: pyvips.Image) -> np.ndarray:
    """(H, W, C), none of which it leaves out."""
    return image.numpy().reshape(image.height, image.width, image.bands)


def _reader(path: Path, image: pyvips.Image) -> Read:
    def read(rows: slice) -> np.ndarray:
        with _reading(path):
            part = image.crop(0, rows.start, image.width, min(rows.stop, image.height) - rows.start)
            return _pixels(part).transpose(2, 0, 1)[None]

    return read
