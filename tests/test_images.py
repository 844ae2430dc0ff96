"""Image files are read as what their headers say, written with it, or refused with what is said there."""

import io
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pytest
import pyvips
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import nn

from reparam import SpecError, Upscaler
from reparam.sr._upscale.batch import plan, upscale_files
from reparam.sr._upscale.color import join, split
from reparam.sr._upscale.files import FORMATS, read_picture
from reparam.sr._upscale.images import from_pil


class Same(nn.Module):
    """Gives the image back, so that a file that is enlarged by it holds what was read."""

    scale, colors = 1, 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight


SAME = Upscaler(Same(), engine="torch", tile=16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SMOOTH = (np.add.outer(5 * np.arange(24), 3 * np.arange(36))[..., None] + [0, 20, 40]).clip(0, 255).astype(np.uint8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By the table of TIFF: where row 0 and column 0 of the file belong."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "maker"
    return exif


def png(pixels: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A file by hand, as no library writes all of them; pixels (H, W, C) are below 2 to the depth."""
    height, width = pixels.shape[:2]
    bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=-1)[..., 16 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", content), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


# Writers: each takes whatever pixels, writes a file, and says what one should see in it, and how nearly


def exact(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pixels, np.zeros((*pixels.shape[:2], 1))


@st.composite
def kinds(draw):
    """Channels (gray or RGB, then perhaps alpha), numbers of 8 or 16 bits, how the file is turned, and its profile."""
    channels, dtype = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([np.uint8, np.uint16]))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40)), channels
    return shape, dtype, draw(st.booleans()), draw(st.integers(1, 8)), draw(st.booleans())


def pixels_of(shape: tuple[int, int, int], dtype: type, opaque: bool) -> np.ndarray:
    pixels = np.random.default_rng(shape).integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    if shape[2] in (2, 4):
        pixels[..., -1] = np.iinfo(dtype).max if opaque else pixels[..., -1].clip(1)  # what is hidden need not stay
    return pixels


def by_tifffile(draw, path, pixels, orientation, profile):
    channels, white = pixels.shape[2], np.iinfo(pixels.dtype).max
    alpha = draw(st.sampled_from(["unassalpha", "assocalpha", "unspecified"])) if channels in (2, 4) else None
    planar = channels > 2 and draw(st.booleans())
    negative = channels == 1 and draw(st.booleans())
    tags = [(274, "H", 1, orientation, True)] + ([(34675, "B", len(profile), profile, True)] if profile else [])
    file = pixels
    if alpha == "assocalpha":
        file = np.dstack(
            [np.rint(pixels[..., :-1] * (pixels[..., -1:] / white)).astype(pixels.dtype), pixels[..., -1:]]
        )
    tifffile.imwrite(
        path,
        file[..., 0] if channels == 1 else file.transpose(2, 0, 1) if planar else file,
        photometric="rgb" if channels > 2 else "miniswhite" if negative else "minisblack",
        planarconfig=("separate" if planar else "contig") if channels > 1 else None,
        extrasamples=alpha and [alpha],
        tile=None if planar else draw(st.sampled_from([None, (16, 16)])),
        byteorder=draw(st.sampled_from("<>")),
        bigtiff=draw(st.booleans()),
        metadata=None,
        extratags=tags,
    )
    slack = white / pixels[..., -1:] if alpha == "assocalpha" else np.zeros((*pixels.shape[:2], 1))
    return white - pixels if negative else pixels, slack


def by_pillow(draw, path, pixels, orientation, profile):
    channels, shallow = pixels.shape[2], pixels.astype(np.uint8)
    shallow[..., -1] = shallow[..., -1].clip(1)
    image = Image.fromarray(shallow[..., 0] if channels == 1 else shallow)
    if channels == 3 and draw(st.booleans()):
        image = image.quantize(draw(st.sampled_from([2, 4, 16, 256])))
    elif channels == 1 and draw(st.booleans()):
        image = image.convert("1")
    image.save(path, exif=exif_of(orientation), icc_profile=profile)
    plain = {"P": "RGB", "1": "L"}.get(image.mode, image.mode)
    return exact(np.atleast_3d(np.asarray(image.convert(plain))))


def by_hand(draw, path, pixels, orientation, profile):
    """A PNG with a color that stands for transparency, of any depth."""
    channels, deep = 3 - 2 * (pixels.shape[2] < 3), pixels.dtype == np.uint16
    depth = 16 if deep else draw(st.sampled_from([1, 2, 4, 8])) if channels == 1 else 8
    pixels = pixels[..., :channels] >> ((16 if deep else 8) - depth)
    key, scale = pixels[0, 0], np.iinfo(pixels.dtype).max // (2**depth - 1)
    exif = exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")
    transparent = b"tRNS", np.full(channels, key, ">u2").tobytes()
    profiles = [(b"iCCP", b"a\0\0" + zlib.compress(profile))] if profile else []
    path.write_bytes(png(pixels, depth, 0 if channels == 1 else 2, *profiles, (b"eXIf", exif), transparent))
    alpha = np.where((pixels == key).all(-1, keepdims=True), 0, np.iinfo(pixels.dtype).max)
    return exact(np.dstack([pixels * scale, alpha]).astype(pixels.dtype))


def by_opencv(draw, path, pixels, orientation, profile):
    pixels = pixels if pixels.shape[2] != 2 else pixels[..., :1]
    parts = {cv2.IMAGE_METADATA_EXIF: exif_of(orientation).tobytes().removeprefix(b"Exif\0\0")}
    parts |= {cv2.IMAGE_METADATA_ICCP: profile} if profile else {}
    swapped = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] > 1 else pixels
    cv2.imwriteWithMetadata(str(path), swapped, list(parts), [np.frombuffer(part, np.uint8) for part in parts.values()])
    return exact(pixels)


def by_libvips(draw, path, pixels, orientation, profile):
    kind = (["b-w", "srgb"] if pixels.dtype == np.uint8 else ["grey16", "rgb16"])[pixels.shape[2] > 2]
    image = pyvips.Image.new_from_array(pixels).copy(interpretation=kind)
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    if profile:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    options = {"interlace": draw(st.booleans())} if path.suffix == ".png" else {"tile": draw(st.booleans())}
    image.write_to_file(str(path), **options)
    return exact(pixels)


WRITERS = {
    by_tifffile: [".tif"],
    by_pillow: [".png", ".tif"],
    by_hand: [".png"],
    by_opencv: [".png"],
    by_libvips: [".png", ".tif"],
}


def seen(path: Path) -> np.ndarray:
    """The pixels (H, W, C) of a file, by other libraries than the one that wrote it."""
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert page.photometric.name in ("MINISBLACK", "RGB") and page.tags.valueof(274, 1) == 1
            return np.atleast_3d(page.asarray())
    with Image.open(path) as image:
        assert image.getexif().get(274, 1) == 1
    return decoded(path.read_bytes())


def profile_of(path: Path) -> bytes | None:
    if path.suffix == ".tif":  # of which PIL does not read all
        with tifffile.TiffFile(path) as file:
            return file.pages[0].tags.valueof(34675)
    with Image.open(path) as image:
        return image.info.get("icc_profile")


def decoded(content: bytes) -> np.ndarray:
    """The pixels (H, W, C) of a PNG without palette, by hand, as no library reads gray and alpha of 16 bits."""
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    data, place = b"", 8
    while place < len(content):
        length, name = struct.unpack(">I4s", content[place : place + 8])
        data += content[place + 8 : place + 8 + length] if name == b"IDAT" else b""
        place += 12 + length
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    step = channels * depth // 8
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * step)
    rows = np.zeros((height + 1, (width + 1) * step), np.uint8)  # with zeros above and to the left
    for row, (filtered, *line) in enumerate(lines.tolist(), 1):
        for index, value in enumerate(line, step):
            left, up, corner = (
                int(rows[at]) for at in ((row, index - step), (row - 1, index), (row - 1, index - step))
            )
            nearest = min((left, up, corner), key=lambda one: abs(left + up - corner - one))
            rows[row, index] = (value + [0, left, up, (left + up) // 2, nearest][filtered]) % 256
    numbers = np.ascontiguousarray(rows[1:, step:]).view(f">u{depth // 8}").astype(f"u{depth // 8}")
    return numbers.reshape(height, width, channels)


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=settings.default.max_examples // 2)  # of each writer
@given(data=st.data())
def test_a_file_says_the_same_after_as_before(writer, data):
    shape, dtype, opaque, orientation, has_profile = data.draw(kinds())
    pixels, profile = pixels_of(shape, dtype, opaque), SRGB if has_profile else None
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / f"a{data.draw(st.sampled_from(WRITERS[writer]))}"
        wanted, slack = (turned(part, orientation) for part in writer(data.draw, source, pixels, orientation, profile))
        check(read_picture(source), wanted, slack)
        for suffix in (".png", ".tif"):
            SAME.file(source, target := folder / f"b{suffix}")
            check(seen(target), wanted, slack)
            assert profile_of(target) == (profile if wanted.shape[2] > 2 else None)
        for suffix in (".jpg", ".webp", ".bmp"):
            target = folder / f"c{suffix}"
            if (
                not FORMATS[suffix].alpha
                and wanted.shape[2] in (2, 4)
                and wanted[..., -1].min() < np.iinfo(wanted.dtype).max
            ):
                with pytest.raises(
                    SpecError, match=f"c{suffix}: it would have transparency, which {suffix} cannot hold"
                ):
                    SAME.file(source, target)
                continue
            SAME.file(source, target)
            with Image.open(target) as image:
                assert image.size == wanted.shape[1::-1]


def check(found: np.ndarray, wanted: np.ndarray, slack: np.ndarray) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    shown = wanted[..., -1] > 0 if wanted.shape[2] in (2, 4) else np.ones(wanted.shape[:2], bool)
    assert (np.abs(found.astype(int) - wanted) <= slack)[shown].all()


# What is refused, and how


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"dtype": np.int16},
            r"an image of 1 channels \(grey16\) of type short is not supported; convert it to a",
        ),
        ({"dtype": np.uint32}, "of type uint is not supported"),
        ({"dtype": np.float32, "photometric": "rgb"}, r"an image of 3 channels \(scrgb\) of type float"),
        (
            {"photometric": "rgb", "extrasamples": [2, 0]},
            r"an image of 5 channels \(rgb16\) of type ushort",
        ),
        ({"pages": 3}, "a file of 3 pages is not supported; extract one of them"),
        ({"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, "tiled separate planes not supported"),
        (
            {"extrasamples": [2], "planarconfig": "separate"},
            r"gray and alpha in separate planes \(PlanarConfiguration=2\)",
        ),
        ({"extrasamples": [2], "planarconfig": "separate", "bigtiff": True}, "gray and alpha in separate planes"),
        ({"extrasamples": [2], "planarconfig": "separate", "byteorder": ">"}, "gray and alpha in separate planes"),
    ],
)
def test_a_tiff_that_is_not_read_is_named(options, match, tmp_path):
    options = {"photometric": "minisblack", **options}
    colors = 3 if options["photometric"] == "rgb" else 1
    channels, pages = colors + len(options.get("extrasamples", ())), options.pop("pages", 1)
    pixels = np.zeros((*[pages][: pages > 1], 32, 48, *[channels][: channels > 1]), options.pop("dtype", np.uint16))
    if "planarconfig" in options:
        pixels = pixels.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    with pytest.raises(SpecError, match=f"cannot read .*a.tif.*: .*{match}"):
        read_picture(tmp_path / "a.tif")


TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def lab_of(pixels: np.ndarray) -> np.ndarray:
    """L*, a*, b* of sRGB of 0 to 255 as ICC has it, of D50, by the formulas."""
    x = pixels / 255
    xyz = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def rgb_of(lab: np.ndarray) -> np.ndarray:
    """The same, backwards."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (116 * f - 16) / (24389 / 27)) * TO_XYZ.sum(1)
    x = (xyz @ np.linalg.inv(TO_XYZ).T).clip(0, 1)
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(("dtype", "steps"), [(np.uint8, (2.55, 1)), (np.uint16, (655.35, 256))])
def test_cielab_of_tiff_becomes_srgb(dtype, steps, tmp_path):
    assert np.abs(rgb_of(lab_of(SMOOTH)) - SMOOTH).max() < 1e-6
    values = np.rint(lab_of(SMOOTH) * [steps[0], steps[1], steps[1]]).astype(int)
    tifffile.imwrite(tmp_path / "a.tif", values.astype(dtype), photometric="cielab", metadata=None)
    wanted = rgb_of(values / [steps[0], steps[1], steps[1]])
    found = read_picture(tmp_path / "a.tif")
    assert found.dtype == dtype and np.abs(found / (np.iinfo(dtype).max / 255) - wanted).max() < 1
    SAME.file(tmp_path / "a.tif", tmp_path / "b.png")
    assert np.array_equal(decoded((tmp_path / "b.png").read_bytes()), found)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_of_every_kind(mode, tmp_path, monkeypatch):
    image = Image.fromarray(SMOOTH).convert(mode)
    image.save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # as files pass PIL's own limit that are below ours
    wanted = np.asarray(image.convert({"1": "L", "L": "L"}.get(mode, "RGB")))  # a fourth channel says nothing in BMP
    assert np.array_equal(read_picture(tmp_path / "a.bmp").squeeze(), wanted)
    with pytest.raises(SpecError, match="its 36 x 24 pixels are 864, more than max_pixels=863"):
        SAME.file(tmp_path / "a.bmp", tmp_path / "b.png", max_pixels=863)


def test_other_formats_are_not_read(tmp_path):
    image = Image.fromarray(SMOOTH)
    image.save(tmp_path / "a.ppm")
    image.save(tmp_path / "a.avif")
    image.save(tmp_path / "a.bmp")
    (tmp_path / "half.bmp").write_bytes((tmp_path / "a.bmp").read_bytes()[:200])
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    for name, match in (
        ("a.ppm", r"as an image: .* is not a known file format \(supported: PNG, JPEG, WebP, TIFF, GIF, BMP\)"),
        ("a.avif", "heif files are not supported; convert it to a PNG"),
        ("a.svg", "svg files are not supported"),
        ("half.bmp", "as an image: image file is truncated"),
    ):
        with pytest.raises(SpecError, match=f"cannot read .*{name}:? {match}"):
            read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(IsADirectoryError):
        read_picture(tmp_path)


def test_damage_is_found_before_anything_is_computed(tmp_path):
    content = png(np.random.default_rng(0).integers(0, 65536, (60, 70, 3)), 16, 2)
    broken = bytearray(content)
    broken[len(broken) // 2] ^= 255
    for part in (content[:-2000], bytes(broken)):
        (tmp_path / "a.png").write_bytes(part)
        with pytest.raises(SpecError, match=r"cannot read .*a.png as an image: .*libpng read error"):
            SAME.file(tmp_path / "a.png", tmp_path / "b.png")
        assert not (tmp_path / "b.png").exists()


def test_a_file_is_read_anew_when_it_has_changed(tmp_path):
    for pixels in (SMOOTH, SMOOTH[::-1], SMOOTH[:9]):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "a.png")
        assert np.array_equal(read_picture(tmp_path / "a.png"), pixels)


def test_how_large_images_may_be(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    SAME.file(tmp_path / "a.png", tmp_path / "b.png", max_pixels=24 * 36)
    with pytest.raises(
        SpecError, match="its 36 x 24 pixels are 864, more than max_pixels=863; raise it if you trust the file"
    ):
        SAME.file(tmp_path / "a.png", tmp_path / "b.png", max_pixels=863)
    huge = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
    (tmp_path / "a.png").write_bytes(body + png(SMOOTH, 8, 2)[33:])
    with pytest.raises(
        SpecError, match="its 60000 x 50000 pixels are 3,000,000,000, more than max_pixels=1,000,000,000"
    ):
        SAME.file(tmp_path / "a.png", tmp_path / "b.png")


@pytest.mark.parametrize(
    ("size", "suffix", "match"),
    [
        ((16384, 1), ".webp", "16384 x 1 pixels, and .webp holds at most 16383 per side; .* for example .png"),
        ((1, 65501), ".jpg", "1 x 65501 pixels, and .jpg holds at most 65500 per side"),
    ],
)
def test_what_is_too_large_for_its_format_is_told_before(size, suffix, match, tmp_path, monkeypatch):
    Image.new("L", size).save(tmp_path / "a.png")
    monkeypatch.setattr(SAME._tiled, "run", None)  # which nobody asks
    with pytest.raises(SpecError, match=f"cannot write b{suffix}: it would have {match}"):
        SAME.file(tmp_path / "a.png", tmp_path / f"b{suffix}")


def test_a_tiff_that_is_large_is_a_big_one(tmp_path, monkeypatch):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    for most, version in ((3 * 24 * 36, 42), (3 * 24 * 36 - 1, 43)):
        monkeypatch.setattr("reparam.sr._upscale.photo._CLASSIC", most)
        SAME.file(tmp_path / "a.png", tmp_path / "b.tif")
        assert (tmp_path / "b.tif").read_bytes()[2] == version and (seen(tmp_path / "b.tif") == SMOOTH).all()


def test_what_stops_the_writing_is_told(tmp_path, monkeypatch):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")

    def full(self, path, **options):
        raise pyvips.Error("unable to write", "disc full")

    monkeypatch.setattr(pyvips.Image, "write_to_file", full)
    with pytest.raises(OSError, match=r"cannot write .*b.png: disc full"):
        SAME.file(tmp_path / "a.png", tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# What belongs to an image


def test_what_xmp_says_of_a_png_is_said_once(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.png").write_bytes(png(SMOOTH, 8, 2, (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp)))
    SAME.file(tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().count(b"XML:com.adobe.xmp") == 1
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["XML:com.adobe.xmp"].encode() == xmp.replace(b"6", b"1")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_metadata_is_kept(suffix, tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="8"/></x:xmpmeta>'
    options = {"exif": exif_of(8), "xmp": xmp, "dpi": (300, 300), "icc_profile": SRGB}
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", **options)
    SAME.file(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as image:
        exif, info = image.getexif(), image.info
        assert image.size == (24, 36) and exif.get(274, 1) == 1 and info["icc_profile"] == SRGB
        assert exif.get(271) == "maker"
        kept = info.get("xmp") or info.get("XML:com.adobe.xmp", "").encode()
        assert kept == xmp.replace(b"8", b"1")
        if suffix != ".webp":  # which has it in the EXIF
            assert info["dpi"] == pytest.approx((300, 300), abs=0.01)
        else:
            assert (float(exif[282]), float(exif[283])) == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("before", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("after", [".jpg", ".tif"])
@pytest.mark.parametrize("order", "<>")
def test_exif_is_kept_from_and_in_tiff(before, after, order, tmp_path):
    exif = exif_of(6)
    exif.endian = order
    exif[315] = "Jim"  # odd, with its zero inside of the entry
    exif[34665] = {33434: (1, 50), 36867: "2020:01:01 00:00:00", 37500: b"notes of the maker", 37510: b"ASCII\0\0\0a"}
    exif[34853] = {1: "N", 2: (1.0, 2.0, 3.5)}
    source, target = tmp_path / f"a{before}", tmp_path / f"b{after}"
    Image.fromarray(SMOOTH).save(source, exif=exif.tobytes())
    SAME.file(source, target)
    with Image.open(target) as image:
        found = image.getexif()
        assert (found[271], found[315], found.get(274, 1)) == ("maker", "Jim", 1) and image.size == (24, 36)
        assert exif[34665].items() <= found.get_ifd(34665).items()
        assert found.get_ifd(34853) == exif[34853]
    if after == ".tif":
        with tifffile.TiffFile(target) as file:
            assert (file.pages[0].asarray() == turned(read_picture(source), 1)).all() and len(file.pages) == 1
            assert file.pages[0].tags.valueof(34665)["DateTimeOriginal"] == "2020:01:01 00:00:00"


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_exif_that_pil_cannot_write_is_left_out(suffix, tmp_path, monkeypatch):
    Image.fromarray(SMOOTH).save(tmp_path / f"a{suffix}", exif=exif_of(1).tobytes())
    wanted = read_picture(tmp_path / f"a{suffix}")
    monkeypatch.setattr(Image.Exif, "tobytes", lambda self, place=8: struct.pack("H", "maker"))
    SAME.file(tmp_path / f"a{suffix}", tmp_path / "b.tif")
    assert np.array_equal(read_picture(tmp_path / "b.tif"), wanted) and len(list(tmp_path.iterdir())) == 2
    with Image.open(tmp_path / "b.tif") as image:
        assert 271 not in image.getexif()


def test_texts_and_colors_of_png_are_kept(tmp_path):
    texts = [(b"tEXt", b"Title\0Caf\xe9"), (b"iTXt", b"Author\0\0\0\0\0" + "J\u00f6rg".encode())]
    colors = [(b"gAMA", struct.pack(">I", 100_000)), (b"cHRM", bytes(range(32))), (b"cICP", bytes([9, 16, 0, 1]))]
    for kept, dropped in (
        (texts, [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455))]),
        (texts + colors[:2], []),
        (texts + colors[2:], []),
    ):
        (tmp_path / "a.png").write_bytes(png(SMOOTH, 8, 2, *kept, *dropped))
        SAME.file(tmp_path / "a.png", tmp_path / "b.png")
        content = (tmp_path / "b.png").read_bytes()
        for name, data in kept:
            assert struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) in content
        assert (decoded(content) == SMOOTH).all()
        if kept == texts:
            assert b"gAMA" not in content
            SAME.file(tmp_path / "a.png", tmp_path / "b.jpg")
            continue
        names = ", ".join(name.decode() for name, _ in kept if name not in (b"tEXt", b"iTXt"))
        with pytest.raises(SpecError, match=f"b.jpg: it would have colors defined by {names}, which .jpg cannot hold"):
            SAME.file(tmp_path / "a.png", tmp_path / "b.jpg")


def test_lossless_webp_stays_lossless(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    for lossless in (True, False):
        for profile in (None, SRGB):
            Image.fromarray(noise).save(tmp_path / "a.webp", lossless=lossless, icc_profile=profile)
            SAME.file(tmp_path / "a.webp", tmp_path / "b.webp")
            with Image.open(tmp_path / "a.webp") as before, Image.open(tmp_path / "b.webp") as after:
                assert np.array_equal(np.asarray(before), np.asarray(after)) == lossless


def gray_profile() -> bytes:
    """Of gray with the gamma of 1, by hand: an ICC file of white and a curve."""
    tags = {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061), b"kTRC": b"curv" + bytes(8)}
    tags[b"desc"] = b"text\0\0\0\0" + np.random.default_rng(0).bytes(120)  # libpng takes no short ones
    head, place, body = b"", 128 + 4 + 12 * len(tags), b""
    for name, data in tags.items():
        head += name + struct.pack(">II", place + len(body), len(data))
        body += data
    size = struct.pack(">I", place + len(body))
    start = size + bytes(4) + bytes([2, 16, 0, 0]) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
    return start.ljust(128, b"\0") + struct.pack(">I", len(tags)) + head + body


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_profile_of_gray_is_in_gray_files_only(suffix, tmp_path):
    profile = gray_profile()
    assert ImageCms.getOpenProfile(io.BytesIO(profile)).profile.xcolor_space == "GRAY"
    for pixels in (SMOOTH[..., 0], SMOOTH):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "a.png", icc_profile=profile)
        SAME.file(tmp_path / "a.png", tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as image:
            gray = pixels.ndim == 2 and suffix != ".webp"  # which has no gray
            assert image.info.get("icc_profile") == (profile if gray else None)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk_becomes_srgb(suffix, tmp_path):
    image = Image.fromarray(SMOOTH).convert("CMYK")
    image.save(tmp_path / f"a{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    found = read_picture(tmp_path / f"a{suffix}")
    assert found.shape == SMOOTH.shape and np.abs(found.astype(int) - SMOOTH).mean() < 40  # inks are not that bright
    SAME.file(tmp_path / f"a{suffix}", tmp_path / "b.png")
    profile = ImageCms.getOpenProfile(io.BytesIO(profile_of(tmp_path / "b.png")))
    assert profile.profile.xcolor_space == "RGB "


# Frames


def film(path: Path, **options) -> list[np.ndarray]:
    frames = [SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]]
    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 300], loop=3, **options)
    return frames


def test_every_frame_of_a_film_is_enlarged(tmp_path):
    frames = film(tmp_path / "a.webp", lossless=True)
    film(tmp_path / "a.gif")
    for name, step in (("a.webp", 0), ("a.gif", 40)):  # of 256 colors
        SAME.file(tmp_path / name, tmp_path / "b.webp")
        with Image.open(tmp_path / "b.webp") as image:
            assert image.n_frames == 3 and image.size == (36, 24)
            for index, frame in enumerate(frames):
                image.seek(index)
                image.load()
                assert image.info["duration"] == 100 * (index + 1)
                assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame).max() <= step
    with pytest.raises(
        SpecError, match="cannot write b.png: it would have 3 frames, and .png holds one; .* for example .webp"
    ):
        SAME.file(tmp_path / "a.gif", tmp_path / "b.png")
    with pytest.raises(SpecError, match="a.webp has 3 frames; extract one of them"):
        read_picture(tmp_path / "a.webp")


def test_a_film_of_png_is_refused_and_the_second_photo_of_a_camera_left(tmp_path):
    film(tmp_path / "a.png")
    with pytest.raises(
        SpecError,
        match="a.png: an animated PNG is not supported; extract one of them, or convert it to an animated WebP",
    ):
        read_picture(tmp_path / "a.png")
    frames = film(tmp_path / "a.mpo", quality=95)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert np.abs(read_picture(tmp_path / "a.jpg").astype(int) - frames[0]).max() < 10
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.n_frames == 3
        assert np.abs(np.asarray(SAME(image)).astype(int) - frames[0]).max() < 10


def test_of_a_jpeg_for_bright_screens_the_picture_is_taken(tmp_path):
    bright = pyvips.Image.new_from_array((SMOOTH / 80).astype(np.float32)).copy(interpretation="scrgb")
    bright.uhdrsave(str(tmp_path / "a.jpg"))
    SAME.file(tmp_path / "a.jpg", tmp_path / "b.png")
    with Image.open(tmp_path / "a.jpg") as image:
        wanted = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_picture(tmp_path / "b.png") - wanted).max() < 10


# Images of PIL


def test_cmyk_of_pil_goes_through_its_profile(monkeypatch):
    image = Image.new("CMYK", (3, 2), (10, 20, 30, 40))
    image.info["icc_profile"] = SRGB  # of RGB, which CMYK has no use for
    with pytest.raises(SpecError, match=r"the image is CMYK with a profile that cannot be used .*; convert it to RGB"):
        from_pil(image)

    def convert(image, source, target, outputMode, flags):
        assert image.mode == "CMYK" and source.read() == SRGB and outputMode == "RGB"
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    pixels, info = from_pil(image)
    assert (pixels == [1, 2, 3]).all() and "icc_profile" not in info


def test_lab_of_pil():
    lab = ImageCms.profileToProfile(
        Image.fromarray(SMOOTH), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(from_pil(lab)[0].astype(int) - SMOOTH).max() < 8


def test_images_of_pil_that_are_refused(tmp_path):
    film(tmp_path / "a.gif")
    deep = Image.fromarray(np.array([[7, 9]], np.uint16))
    deep.info["transparency"] = 9
    with Image.open(tmp_path / "a.gif") as image:
        with pytest.raises(SpecError, match=r"the image has 3 frames; pass one of them: image.copy\(\) after"):
            SAME(image)
        image.seek(1)
        assert np.abs(np.asarray(SAME(image.copy()).convert("RGB")).astype(int) - SMOOTH[::-1]).max() < 40
    with pytest.raises(SpecError, match="mode I;16 holds 7 to 9, one of which is transparent, and only 8 bits"):
        SAME(deep)


def test_what_belongs_to_an_image_of_pil_is_kept():
    image = Image.fromarray(SMOOTH)
    image.info.update(exif=exif_of(6).tobytes(), dpi=(300, 300), icc_profile=SRGB)
    large = SAME(image)
    assert large.info["dpi"] == (300, 300) and large.info["icc_profile"] == SRGB and large.size == (24, 36)
    assert large.getexif()[271] == "maker" and 274 not in large.getexif()


# Values


def test_16_bits_become_8_by_rounding(tmp_path):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    tifffile.imwrite(tmp_path / "a.tif", deep[:, :, 0], photometric="minisblack", metadata=None)
    SAME.file(tmp_path / "a.tif", tmp_path / "a.bmp")
    shallow = np.asarray(Image.open(tmp_path / "a.bmp")).astype(int)
    assert np.abs(257 * shallow - deep[:, :, 0]).max() == 128  # half a step


def test_gray_is_the_mean_of_three_colors():
    y = torch.rand(1, 3, 4, 5)
    assert (join(y, y[:, :1], 3, 1)[:, 0] - y.mean(1)).abs().max() < 1e-6


def test_the_luma_of_gray_is_that_of_three_equal_colors():
    gray = torch.linspace(0, 1, 20).reshape(1, 1, 4, 5)
    luma = split(gray, 1)
    assert (luma - split(gray.expand(1, 3, 4, 5), 1)).abs().max() < 1e-6
    assert (luma.min(), luma.max()) == pytest.approx((16 / 255, 235 / 255))


# Which files


def test_a_batch_takes_every_file_once_and_in_order(tmp_path, monkeypatch):
    for name in ("b.JPG", "a.png", "c.TIFF", "notes.txt", "no/d.webp", "out/a_x2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: sorted(glob(self, pattern))[::-1])
    sources, out = [tmp_path, tmp_path / "a.png", tmp_path / "no" / ".." / "b.JPG"], tmp_path / "out"
    found = plan(sources, out, 2, overwrite=True)
    assert [target.name for target in found.targets.values()] == ["a_x2.png", "b_x2.JPG", "c_x2.TIFF"]
    assert found.passed == [tmp_path / "notes.txt"] and found.failed == {}
    deeper = plan([tmp_path], out, 2, recursive=True, skip=True)
    assert deeper.there == [tmp_path / "a.png"] and deeper.passed == [tmp_path / "notes.txt"]
    assert [*deeper.targets.values()] == [out / "b_x2.JPG", out / "c_x2.TIFF", out / "no" / "d_x2.webp"]
    with pytest.raises(SpecError, match=r"a_x2.png is there already; .* or --skip the 1 of the 3 images"):
        plan([tmp_path], out, 2)


def test_what_cannot_be_planned_is_a_line_of_its_own(tmp_path):
    for name in ("a.gif", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    found = plan([tmp_path, tmp_path / "empty", tmp_path / "none.png"], tmp_path / "out", 2)
    assert [*found.targets] == [tmp_path / "b.png"]
    assert found.failed[tmp_path / "a.gif"].startswith(".gif cannot be written; name a format with --suffix: .png")
    assert found.failed[tmp_path / "empty"].startswith("no image in")
    assert found.failed[tmp_path / "none.png"].startswith("there is no file")
    assert [*plan([tmp_path], tmp_path / "out", 2, "webp").targets] == [tmp_path / "a.gif", tmp_path / "b.png"]


def test_planning_takes_as_many_steps_as_there_are_files(tmp_path, monkeypatch):
    """Paths are found by their hashes, and not compared each with each."""
    for index in range(300):
        (tmp_path / f"{index}.png").touch()
    compared = 0

    def equal(self, other):
        nonlocal compared
        compared += 1
        return str(self) == str(other)

    monkeypatch.setattr(Path, "__eq__", equal)
    assert len(plan([tmp_path], tmp_path / "out", 2).targets) == 300
    assert compared < 20 * 300


def test_a_file_that_fails_does_not_end_the_batch(tmp_path):
    problems = {
        "a": OSError("disk full"),
        "b": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "c": MemoryError(),
        "d": RuntimeError("engine stopped\nat line 3"),
        "e": SpecError("no image"),
    }

    class Broken:
        def file(self, source, target, max_pixels):
            if source in problems:
                raise problems[source]

    memory = "there is not enough memory for it; use a smaller tile"
    assert list(upscale_files(Broken(), dict.fromkeys("abcdef", tmp_path / "a"), 9)) == [
        ("a", "disk full"),
        ("b", memory),
        ("c", memory),
        ("d", "RuntimeError: engine stopped"),
        ("e", "no image"),
        ("f", ""),
    ]
