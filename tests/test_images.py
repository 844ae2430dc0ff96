"""Image files are read as what their headers say, or refused with what is said there."""

import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from reparam import SpecError
from reparam.sr._upscale.color import coloring
from reparam.sr._upscale.images import Picture, read_picture, write_picture

KINDS = [
    ("minisblack", 1, None),
    ("miniswhite", 1, None),
    ("minisblack", 2, "unassalpha"),
    ("minisblack", 2, "unspecified"),
    ("rgb", 3, None),
    ("rgb", 4, "unassalpha"),
    ("rgb", 4, "assocalpha"),
    ("rgb", 4, "unspecified"),
]
READ = {
    *((np.uint8, *kind, "contig") for kind in KINDS if kind[2] in (None, "unassalpha")),
    (np.uint8, "rgb", 3, None, "separate"),
    (np.uint8, "rgb", 4, "unassalpha", "separate"),
    (np.uint16, "minisblack", 1, None, "contig"),
    (np.uint16, "rgb", 3, None, "contig"),
    (np.uint16, "rgb", 4, "unassalpha", "contig"),
}
"""Those that must be read when they are upright; any other may be refused, but not be wrong."""


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By the table of TIFF: where row 0 and column 0 of the file belong."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


@pytest.mark.parametrize(("photometric", "channels", "extra"), KINDS)
def test_a_tiff_is_right_or_refused(photometric, channels, extra, tmp_path):
    rng = np.random.default_rng(0)
    for dtype, planar, orientation in itertools.product((np.uint8, np.uint16), ("contig", "separate"), range(1, 9)):
        white, file = np.iinfo(dtype).max, tmp_path / "a.tif"
        pixels = rng.integers(0, white + 1, (5, 7, channels)).astype(dtype)
        if channels == 1 and planar == "separate":
            continue
        tifffile.imwrite(
            file,
            pixels[:, :, 0] if channels == 1 else pixels if planar == "contig" else pixels.transpose(2, 0, 1),
            photometric=photometric,
            planarconfig=planar if channels > 1 else None,
            extrasamples=extra and [extra],
            metadata=None,
            extratags=[(274, "H", 1, orientation, True)],
        )
        wanted = white - pixels if photometric == "miniswhite" else pixels
        upright = orientation == 1 or dtype == np.uint8 or channels == 1
        try:
            found = read_picture(file).pixels
        except SpecError:
            found = None
        assert found is not None or not (upright and (dtype, photometric, channels, extra, planar) in READ)
        if found is None:
            continue
        if extra == "assocalpha":  # colours are divided by alpha: where that is full they stay
            full = turned(wanted, orientation)[:, :, 3] == white
            assert (found[full] == turned(wanted, orientation)[full]).all() and dtype == np.uint8
        else:
            assert np.array_equal(found, turned(wanted, orientation))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"photometric": "miniswhite"}, "of 16 bits with PhotometricInterpretation=0 is not read; convert it to a PNG"),
        ({"extratags": [(274, "H", 1, 6, True)], "photometric": "rgb"}, "of 16 bits with Orientation=6"),
        ({"planarconfig": "separate", "photometric": "rgb"}, "of 16 bits with PlanarConfiguration=2"),
        ({"extrasamples": ["assocalpha"], "photometric": "rgb"}, r"of 16 bits with ExtraSamples=\(1,\)"),
        ({"dtype": np.int16}, r"of 16 bits with SampleFormat=\(2,\)"),
        ({"dtype": np.uint32}, r"with BitsPerSample=\(32,\)"),
    ],
)
def test_what_is_refused_is_named(options, match, tmp_path):
    dtype, options = options.get("dtype", np.uint16), {"photometric": "minisblack", **options}
    options.pop("dtype", None)
    channels = 4 if "extrasamples" in options else 3
    shape = (5, 7) if options["photometric"] != "rgb" else (channels, 5, 7) if "planarconfig" in options else None
    pixels = np.zeros(shape or (5, 7, channels), dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    with pytest.raises(SpecError, match=f"cannot read .*a.tif: a TIFF .*{match}"):
        read_picture(tmp_path / "a.tif")


def png(depth: int, kind: int, channels: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A file of 3 x 2 pixels of zeros, by hand, as PIL writes none of these."""
    header = struct.pack(">IIBBBBB", 3, 2, depth, kind, 0, 0, 0)
    rows = zlib.compress(bytes(2 * (1 + 3 * channels * depth // 8)))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (png(16, 4, 2), "grey with alpha"),
        (png(16, 0, 1, (b"tRNS", b"\0\0")), "with a colour that stands for transparency"),
        (png(16, 2, 3, (b"tRNS", bytes(6))), "with a colour that stands for transparency"),
    ],
)
def test_a_png_of_16_bits_whose_transparency_would_be_lost(content, match, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(SpecError, match=f"cannot read .*a.png: a PNG of 16 bits, {match}, is not read; convert it"):
        read_picture(tmp_path / "a.png")


def test_a_png_of_16_bits_in_general(tmp_path):
    for kind, channels in ((0, 1), (2, 3), (6, 4)):
        (tmp_path / "a.png").write_bytes(png(16, kind, channels))
        assert read_picture(tmp_path / "a.png").pixels.shape == (2, 3, channels)


def test_other_formats_are_not_read(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.ppm")
    with pytest.raises(SpecError, match=r"cannot read .*a.ppm as an image: .*\(read are PNG, JPEG, WEBP, TIFF, BMP"):
        read_picture(tmp_path / "a.ppm")


def test_cmyk_goes_through_its_profile(tmp_path, monkeypatch):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of RGB, which CMYK has no use for
    Image.new("CMYK", (3, 2), (10, 20, 30, 40)).save(tmp_path / "a.jpg", icc_profile=profile)
    with pytest.raises(SpecError, match=r"cannot read .*a.jpg: the image is CMYK with a profile that cannot be used"):
        read_picture(tmp_path / "a.jpg")

    def convert(image, source, target, outputMode):
        assert image.mode == "CMYK" and source.tobytes() == profile and outputMode == "RGB"
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.pixels == [1, 2, 3]).all() and picture.icc_profile is None


# Values


def test_16_bits_become_8_by_rounding(tmp_path):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    write_picture(Picture(deep), tmp_path / "a.bmp")
    shallow = np.asarray(Image.open(tmp_path / "a.bmp")).astype(int)
    assert np.abs(257 * shallow - deep[:, :, 0]).max() == 128  # half a step


def test_grey_is_the_mean_of_three_colours():
    y = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)
    assert np.abs(coloring(1, 3, 1).join(y, y[:, :1])[:, 0] - y.mean(1)).max() < 1e-6


def test_the_luma_of_grey_is_that_of_three_equal_colours():
    grey = np.linspace(0, 1, 20, dtype=np.float32).reshape(1, 1, 4, 5)
    luma = coloring(1, 1, 2).split(grey)
    assert np.abs(luma - coloring(3, 1, 2).split(grey.repeat(3, 1))).max() < 1e-6
    assert (luma.min(), luma.max()) == pytest.approx((16 / 255, 235 / 255))


# Which files


def test_a_batch_takes_every_file_once_and_in_order(tmp_path, monkeypatch):
    from reparam.sr._upscale import batch

    for name in ("b.JPG", "a.png", "c.TIFF", "notes.txt"):
        (tmp_path / name).touch()
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    sources = [tmp_path, tmp_path / "a.png", tmp_path / "no" / ".." / "b.JPG"]
    (tmp_path / "no").mkdir()
    targets = batch.plan(sources, tmp_path / "out", 2)
    assert [target.name for target in targets.values()] == ["a_x2.png", "b_x2.JPG", "c_x2.TIFF"]


def test_pairs_of_images_are_sorted(tmp_path, monkeypatch):
    from reparam.sr._quantize.pictures import listed

    for name in ("b.JPG", "a.png"):
        (tmp_path / name).touch()
    found = Path.iterdir
    for reverse in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", lambda self, reverse=reverse: iter(sorted(found(self), reverse=reverse)))
            assert [path.name for path in listed(tmp_path)] == ["a.png", "b.JPG"]


def test_a_file_that_fails_does_not_end_the_batch():
    from reparam.sr._upscale.batch import upscale_files

    problems = {
        "a": OSError("disk full"),
        "b": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        "c": MemoryError(),
        "d": RuntimeError("engine stopped\nat line 3"),
        "e": SpecError("no image"),
    }

    class Broken:
        def file(self, source, target):
            if source in problems:
                raise problems[source]

    memory = "there is not enough memory for it; take a smaller tile"
    assert list(upscale_files(Broken(), dict.fromkeys("abcdef"))) == [
        ("a", "disk full"),
        ("b", memory),
        ("c", memory),
        ("d", "RuntimeError: engine stopped"),
        ("e", "no image"),
        ("f", ""),
    ]
