"""An open image file: reading it row by row, and writing the large one with its metadata."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyvips
import torch
from PIL import Image
from torch import Tensor

from ...errors import SpecError
from ...files._writing import written
from .chunks import COLORS, Chunks, insert_chunks, insert_exif, is_lossless_webp
from .tiled import Read, Shape


class _Format(NamedTuple):
    """What a format can hold, and how it is written."""

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
READ = {"pngload": "PNG", "jpegload": "JPEG", "webpload": "WebP", "tiffload": "TIFF", "gifload": "GIF", "": "BMP"}
"""Formats that are read, by the loaders of libvips whose results are tested; BMP is read by PIL."""
_CLASSIC = 2**31
"""Bytes up to which a TIFF surely fits into the 4 GB that all programs read."""
WHITE = {"uchar": 255, "ushort": 65535}
_KEPT = re.compile(
    "exif-(?!ifd.-Orientation)|xmp-data|iptc-data|icc-profile-data|photoshop-data|resolution-unit|delay|loop"
)


@dataclass(frozen=True)
class Photo:
    """What is in an image file."""

    path: Path
    image: pyvips.Image
    """Upright, gray or RGB, perhaps with alpha, of 8 or 16 bits; frames below each other."""
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
            wide = frame.embed(margin, margin, width + 2 * margin, height + 2 * margin, extend="repeat")
            yield partial(_rows, self.path, wide)

    def for_target(self, target: Path, scale: int) -> Photo:
        """Check, before anything is computed, that a file of this suffix can hold the result; drop an opaque alpha.

        Raises:
            SpecError: if the format cannot hold it.
        """
        suffix, (_, channels, height, width) = target.suffix.lower(), self.shape
        kind, names = FORMATS[suffix], [name.decode() for name, _ in self.chunks if name in COLORS]
        hidden = channels in (2, 4) and not kind.alpha
        if hidden and self.image[-1].min() == WHITE[self.image.format]:
            return replace(self, image=self.image[:-1]).for_target(target, scale)
        size = f"{scale * width} x {scale * height} pixels"
        for it_has, what in (
            (scale * max(height, width) > kind.side, f"{size}, and {suffix} holds at most {kind.side} per side"),
            (self.count > 1 and not kind.moving, f"{self.count} frames, and {suffix} holds one"),
            (names and suffix != ".png", f"colors defined by {', '.join(names)}, which {suffix} cannot hold"),
            (hidden, f"transparency, which {suffix} cannot hold"),
        ):
            if it_has:
                advice = ".webp, or extract one frame" if self.count > 1 else ".png"
                raise SpecError(
                    f"cannot write {target.name}: it would have {what}; choose another suffix, for example {advice}"
                )
        return self

    def write(self, strips: Iterable[Tensor], target: Path, scale: int) -> None:
        """Write the large image, whole or not at all, with the metadata of this one.

        Args:
            strips: (1, C, h, W) of one frame after the other, from top to bottom.
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
                    strip[0].permute(1, 2, 0).contiguous().numpy().tofile(file)
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
        large.set_type(pyvips.GValue.gint_type, "orientation", 1)  # which would stay in EXIF what it was
        large.set_type(pyvips.GValue.gint_type, "page-height", large.height // self.count)
        return large

    def _save(self, large: pyvips.Image, path: Path) -> None:
        suffix = path.suffix.lower()
        kind = FORMATS[suffix]
        options = kind.options
        if large.format == "ushort" and not kind.deep:
            large = (large / 257).rint().cast("uchar").copy(interpretation="b-w" if large.bands < 3 else "srgb")
        if suffix == ".bmp":
            Image.fromarray(pixels_in(large)[..., 0 if large.bands == 1 else slice(None)]).save(path)
            return
        if suffix == ".webp" and is_lossless_webp(self.path):
            options = {"lossless": True}
        elif kind is _TIFF and large.width * large.height * large.bands * (1 + (large.format == "ushort")) > _CLASSIC:
            options = {**options, "bigtiff": True}
        large.write_to_file(str(path), **options)
        if suffix == ".png" and self.chunks:
            insert_chunks(path, self.chunks)
        if kind is _TIFF and "bigtiff" not in options and large.get_typeof("exif-data"):
            with suppress(Exception):  # PIL cannot write all that cameras do; then there is none
                insert_exif(path, large.get("exif-data"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    except (pyvips.Error, OSError, SyntaxError, ValueError, struct.error) as error:  # the others are PIL's
        what = ", ".join(READ.values())
        why = getattr(error, "detail", str(error)).strip()
        raise SpecError(f"cannot read {path} as an image: {why} (supported: {what})") from error


def pixels_in(image: pyvips.Image) -> np.ndarray:
    """(H, W, C), none of which it leaves out."""
    return image.numpy().reshape(image.height, image.width, image.bands)


def _rows(path: Path, image: pyvips.Image, rows: slice) -> Tensor:
    with reading(path):
        part = image.crop(0, rows.start, image.width, min(rows.stop, image.height) - rows.start)
        return torch.from_numpy(pixels_in(part)).permute(2, 0, 1)[None]
