"""Kinds of image files: format, depth, channels, layout, orientation, damage: read rightly, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_images import SMOOTH, exif_of, film, lab_of, png, turned

from reparam import SpecError
from reparam.sr._upscale.files import read_picture

GREY = SMOOTH[..., :1]
ALPHA = np.full_like(GREY, 255)
ALPHA[3:9, 5:20] = 40
CHANNELS = {1: GREY, 2: np.dstack([GREY, ALPHA]), 3: SMOOTH, 4: np.dstack([SMOOTH, ALPHA])}
PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}
KINDS: dict[str, tuple] = {}
"""Suffix, what writes the file, and the pixels (H, W, C) with how far they may be off, or the words of a refusal."""


def kind(name: str, suffix: str, write, wanted, off: int = 0) -> None:
    assert name not in KINDS
    KINDS[name] = suffix, write, wanted, off


def pillow(image, **options):
    return lambda path: (image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())).save(
        path, **options
    )


def content(data: bytes):
    return lambda path: path.write_bytes(data)


def tiff(pixels: np.ndarray, **options):
    channels = pixels.shape[2]
    usual = {"photometric": "rgb" if channels > 2 else "minisblack", "metadata": None}
    usual |= {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    options = usual | options
    file = pixels.transpose(2, 0, 1) if "planarconfig" in options else pixels[..., 0] if channels == 1 else pixels
    return lambda path: tifffile.imwrite(path, file, **options)


def second_photo(path: Path) -> None:
    film(path.with_suffix(".mpo"), quality=95)
    path.with_suffix(".mpo").rename(path)


def cut_off(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_depth(pixels: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """As stored in so many bits, and as read."""
    stored = pixels.astype(np.uint16) * 257 if depth == 16 else pixels >> (8 - depth)
    return stored, stored if depth == 16 else (stored * (255 // (2**depth - 1))).astype(np.uint8)


for channels, pixels in CHANNELS.items():
    for depth in (1, 2, 4, 8, 16) if channels == 1 else (8, 16):
        stored, wanted = of_depth(pixels, depth)
        kind(
            f"PNG, {channels} channels of {depth} bits",
            ".png",
            content(png(stored, depth, PNG_KINDS[channels])),
            wanted,
        )
        if channels in (1, 3):  # the color of the first pixel stands for transparency
            key = b"tRNS", np.full(channels, stored[0, 0], ">u2").tobytes()
            white = 65535 if depth == 16 else 255
            shown = np.where((stored == stored[0, 0]).all(-1, keepdims=True), 0, white)
            with_key = np.dstack([wanted, shown]).astype(wanted.dtype)
            file = png(stored, depth, PNG_KINDS[channels], key)
            kind(f"PNG, {channels} channels of {depth} bits, key", ".png", content(file), with_key)
palette = Image.fromarray(SMOOTH).quantize(16)
for suffix in (".png", ".tif", ".gif", ".bmp"):
    kind(f"{suffix}, palette", suffix, pillow(palette), np.asarray(palette.convert("RGB")))
hidden = palette.copy()
hidden.info["transparency"] = 3
shown = np.where(np.asarray(palette)[..., None] == 3, 0, 255)
for suffix in (".png", ".gif"):
    wanted = np.dstack([np.asarray(palette.convert("RGB")), shown]).astype(np.uint8)
    kind(f"{suffix}, palette with transparency", suffix, pillow(hidden, transparency=3), wanted)
bits = Image.fromarray(GREY[..., 0]).convert("1")
for suffix in (".png", ".tif", ".bmp"):
    kind(f"{suffix}, 1 bit", suffix, pillow(bits), np.asarray(bits.convert("L"))[..., None])

for channels, pixels in CHANNELS.items():
    for depth in (8, 16):
        stored, wanted = of_depth(pixels, depth)
        name = f"TIFF, {channels} channels of {depth} bits"
        for order in "<>":
            for big in (False, True):
                options = {"byteorder": order, "bigtiff": big}
                kind(f"{name}, {order}{', BigTIFF' * big}", ".tif", tiff(stored, **options), wanted)
        kind(f"{name}, tiles", ".tif", tiff(stored, tile=(16, 16)), wanted)
        if channels > 1:
            kind(
                f"{name}, planes",
                ".tif",
                tiff(stored, planarconfig="separate"),
                wanted if channels > 2 else "in separate planes",
            )
    if channels in (2, 4):
        kind(f"TIFF, {channels} channels, unspecified", ".tif", tiff(pixels, extrasamples=["unspecified"]), pixels)
        faint = np.dstack([np.rint(pixels[..., :-1] * (pixels[..., -1:] / 255)), pixels[..., -1:]]).astype(np.uint8)
        kind(f"TIFF, {channels} channels, premultiplied", ".tif", tiff(faint, extrasamples=["assocalpha"]), pixels, 4)
for depth in (8, 16):
    stored, wanted = of_depth(GREY, depth)
    white = 255 if depth == 8 else 65535
    kind(f"TIFF, {depth} bits, white is zero", ".tif", tiff(white - wanted, photometric="miniswhite"), wanted)
for way in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
    kind(f"TIFF, {way}", ".tif", pillow(SMOOTH, compression=way), SMOOTH)
kind("TIFF, group4", ".tif", pillow(bits, compression="group4"), np.asarray(bits.convert("L"))[..., None])
kind("TIFF, jpeg", ".tif", pillow(SMOOTH, compression="jpeg", quality=95), SMOOTH, 12)
lab = np.rint(lab_of(SMOOTH) * [2.55, 1, 1]).astype(int).astype(np.uint8)
kind("TIFF, CIELAB of 8 bits", ".tif", tiff(lab, photometric="cielab"), SMOOTH, 3)
kind("TIFF, float", ".tif", tiff((SMOOTH / 255).astype(np.float32)), "of type float is not supported; convert")
kind("TIFF, int16", ".tif", tiff(GREY.astype(np.int16)), "of type short is not supported; convert")
kind("TIFF, uint32", ".tif", tiff(GREY.astype(np.uint32)), "of type uint is not supported; convert")
five = tiff(np.dstack([CHANNELS[4], GREY]), extrasamples=["unassalpha", "unspecified"])
kind("TIFF, 5 channels", ".tif", five, "an image of 5 channels")
pages = [Image.fromarray(SMOOTH)] * 2
kind(
    "TIFF, pages",
    ".tif",
    pillow(pages[0], save_all=True, append_images=pages[1:]),
    "a file of 2 pages is not supported; extract",
)

for suffix, off in ((".png", 0), (".tif", 0), (".jpg", 12), (".webp", 12)):
    for orientation in range(1, 9):
        write = pillow(SMOOTH, exif=exif_of(orientation), quality=95)
        kind(f"{suffix}, orientation {orientation}", suffix, write, turned(SMOOTH, orientation), off)
for suffix in (".jpg", ".tif"):
    inks = Image.fromarray(SMOOTH).convert("CMYK")
    kind(f"{suffix}, CMYK", suffix, pillow(inks), SMOOTH, 130)  # inks are not that bright
kind("JPEG, gray", ".jpg", pillow(GREY, quality=95), GREY, 8)
kind("JPEG, progressive", ".jpg", pillow(SMOOTH, quality=95, progressive=True), SMOOTH, 12)
kind("JPEG, 4:4:4", ".jpg", pillow(SMOOTH, quality=95, subsampling=0), SMOOTH, 8)
kind("JPEG, second photo", ".jpg", second_photo, SMOOTH, 12)
kind("WebP", ".webp", pillow(SMOOTH, quality=95), SMOOTH, 12)
kind("WebP, lossless", ".webp", pillow(SMOOTH, lossless=True), SMOOTH)
kind("WebP, alpha", ".webp", pillow(CHANNELS[4], lossless=True), CHANNELS[4])
kind("BMP, gray", ".bmp", pillow(GREY), GREY)
kind("BMP", ".bmp", pillow(SMOOTH), SMOOTH)
kind("BMP, fourth channel", ".bmp", pillow(CHANNELS[4]), SMOOTH)
kind("WebP, frames", ".webp", film, "has 3 frames; extract one of them")
kind("GIF, frames", ".gif", film, "has 3 frames; extract one of them")
kind(
    "PNG, frames",
    ".png",
    film,
    "an animated PNG is not supported; extract one of them, or convert it to an animated WebP",
)
for suffix in (".ppm", ".avif", ".tga", ".ico"):
    kind(
        f"{suffix}",
        suffix,
        pillow(SMOOTH),
        "not supported; convert it to a PNG|is not a known file format .supported: PNG",
    )
kind(
    "SVG",
    ".svg",
    content(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "svg files are not supported; convert",
)
kind("text", ".png", content(b"no image"), "is not a known file format .supported: PNG")
kind("nothing", ".png", content(b""), "as an image: .*supported: PNG")
for suffix in (".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"):
    kind(f"{suffix}, cut off", suffix, cut_off, "as an image: .*supported: PNG")


@pytest.mark.parametrize("name", KINDS)
def test_kind(name, tmp_path):
    suffix, write, wanted, off = KINDS[name]
    write(path := tmp_path / f"a{suffix}")
    if isinstance(wanted, str):
        with pytest.raises(SpecError, match=f"(?s)a{suffix}.*({wanted})"):
            read_picture(path)
        return
    found = read_picture(path)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    shown = wanted[..., -1:] > 0 if wanted.shape[2] in (2, 4) else np.ones_like(wanted[..., :1], bool)
    assert np.abs(np.where(shown, found, 0).astype(int) - np.where(shown, wanted, 0)).max() <= off


def test_how_many_kinds():
    assert len(KINDS) >= 137
