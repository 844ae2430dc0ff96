"""Files of networks that `Upscaler` runs: of every format that `export` writes, of one size, and of other programs."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from helpers import made
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from reparam import SpecError, Upscaler, export
from reparam.bench import bench_inference
from reparam.cli import app
from reparam.deploy import FILE_ENGINES, open_engine
from reparam.sr._upscale.tiles import fixed_spans

NET = made("repsr_m2c8_x2")
IMAGE = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the network in every format, and `bare.onnx` without a note."""
    folder = tmp_path_factory.mktemp("opened")
    for suffix in (".onnx", ".xml", ".pt2", ".ncnn.param", ".tflite"):
        export(NET, folder / f"net{suffix}")
    model = onnx.load(folder / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "bare.onnx")
    return folder


@pytest.fixture(scope="module")
def whole():
    return Upscaler(NET, engine="torch")(IMAGE)


def assert_enlarges(upscaler, wanted, image=IMAGE, error=1e-5):
    assert np.abs(upscaler(image) - wanted).max() <= error * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *(("net.onnx", engine) for engine in ("auto", "onnxruntime", "openvino")),
        *(("net.xml", engine) for engine in ("auto", "openvino")),
        *(("net.pt2", engine) for engine in ("auto", "torch")),
        *(("net.tflite", engine) for engine in ("auto", "litert")),
        ("bare.onnx", "auto"),
    ],
)
def test_what_a_file_does_not_say_is_measured(name, engine, folder, whole):
    upscaler = Upscaler(folder / name, engine=engine, tile=9)
    assert (upscaler.scale, upscaler.colors, upscaler.radius, upscaler.period) == (2, 3, 4, 1)
    assert_enlarges(upscaler, whole)


def test_ncnn_says_nothing_of_itself(folder, whole):
    with pytest.raises(SpecError, match=r"net.ncnn.param does not say its colors: pass colors=, 1 or 3"):
        Upscaler(folder / "net.ncnn.param")
    upscaler = Upscaler(folder / "net.ncnn.param", tile=9, colors=3)
    assert (upscaler.engine, upscaler.scale, upscaler.period) == ("ncnn", 2, 1)
    assert upscaler.radius >= 4  # a NaN spoils all of a block of Winograd's
    assert_enlarges(upscaler, whole)


def test_what_was_told_is_compared(folder):
    assert Upscaler(folder / "bare.onnx", scale=2, colors=3).scale == 2
    for name in ("bare.onnx", "net.onnx"):
        with pytest.raises(SpecError, match=rf"{name} has colors=3, but got colors=1; leave it out"):
            Upscaler(folder / name, colors=1)
        with pytest.raises(SpecError, match=rf"{name} has scale=2, but got scale=4; leave it out"):
            Upscaler(folder / name, scale=4)
    with pytest.raises(SpecError, match=r"has scale=2 and colors=3 of its own, but got scale=3, colors=None"):
        Upscaler(NET, engine="torch", scale=3)
    with pytest.raises(SpecError, match="there is no file no.onnx"):
        Upscaler("no.onnx")
    with pytest.raises(SpecError, match=r"net.xml runs in openvino, openvino-bf16, but got the engine 'torch'"):
        Upscaler(folder / "net.xml", engine="torch")


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("net", "channels", "match"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 4, "net.onnx takes images of 4 channels, where an image has 1 or 3"),
        (nn.Conv2d(3, 3, 3, 2, 1), 3, r"net.onnx makes \(1, 3, 24, 24\) of \(1, 3, 48, 48\), which is not the image"),
        (nn.Conv2d(3, 1, 3, padding=1), 3, r"net.onnx makes \(1, 1, 48, 48\) of \(1, 3, 48, 48\), which is not"),
        (Odd(lambda x: x + x.mean((2, 3), keepdim=True)), 3, "reaches farther than .* only run on whole images"),
    ],
    ids=["channels", "smaller", "colors", "not local"],
)
def test_files_that_enlarge_no_image(net, channels, match, tmp_path):
    export(net.eval(), tmp_path / "net.onnx", example=torch.rand(1, channels, 8, 9))
    with pytest.raises(SpecError, match=match):
        Upscaler(tmp_path / "net.onnx")


def test_a_file_in_float16(tmp_path, whole):
    export(NET, tmp_path / "half.onnx", half=True)
    for engine in ("onnxruntime", "openvino"):
        upscaler = Upscaler(tmp_path / "half.onnx", engine=engine, tile=9)
        assert upscaler(IMAGE).dtype == np.float32
        assert_enlarges(upscaler, whole, error=4e-3)


# One size


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    for suffix in (".onnx", ".xml", ".pt2"):
        export(NET, folder / f"net{suffix}", example=torch.rand(3, 3, 14, 17), dynamic=False)
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_file_of_one_size_and_batch(suffix, fixed, whole):
    upscaler = Upscaler(fixed / f"net{suffix}")
    assert_enlarges(upscaler, whole)  # larger than the file: no pixel is made up
    assert_enlarges(upscaler, Upscaler(NET, engine="torch")(IMAGE[:14, :17]), IMAGE[:14, :17])
    small = IMAGE[:9, :12]  # continued by its last pixels
    longer = np.pad(small, ((0, 5), (0, 5), (0, 0)), mode="edge")
    assert_enlarges(upscaler, Upscaler(NET, engine="torch")(longer)[:18, :24], small)
    assert [x.shape for x in upscaler.inputs(IMAGE)] == [(1, 3, 14, 17)] * 6


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_files_and_batches_through_a_file_of_one_size(channels, fixed, tmp_path):
    upscaler, free = Upscaler(fixed / "net.onnx"), Upscaler(NET, engine="torch")
    image = np.random.default_rng(0).integers(0, 256, (41, 30, channels), np.uint8)
    image[..., 3:] = 255
    Image.fromarray(image.squeeze()).save(tmp_path / "a.png")
    upscaler.file(tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as large:
        assert np.abs(np.asarray(large).reshape(82, 60, channels).astype(int) - free(image)).max() <= 1
    batch = torch.from_numpy(image).permute(2, 0, 1).expand(2, channels, 41, 30)
    assert (upscaler(batch).int() - free(batch).int()).abs().max() <= 1
    with pytest.raises(
        SpecError, match=r'net.onnx takes only images of [0-9]+ x [0-9]+ pixels, and edges="wrap" needs'
    ):
        Upscaler(fixed / "net.onnx", edges="wrap")


def test_whole_images_of_one_size(fixed):
    upscaler = Upscaler(fixed / "net.onnx", tile=0)
    assert upscaler(IMAGE[:14, :17]).shape == (28, 34, 3) and upscaler(IMAGE[:5, :17]).shape == (10, 34, 3)
    with pytest.raises(SpecError, match=r"net.onnx takes images of 14 x 17 pixels, but got 20 x 30, .*tile=0"):
        upscaler(IMAGE)


def test_tiles_that_leave_nothing(tmp_path):
    export(NET, tmp_path / "net.onnx", example=torch.rand(1, 3, 8, 8), dynamic=False)
    upscaler = Upscaler(tmp_path / "net.onnx")
    assert upscaler(IMAGE[:8, :7]).shape == (16, 14, 3)
    with pytest.raises(SpecError, match=r"takes 8 pixels, of which tiles overlap by 4 on either side, .* on 20"):
        upscaler(IMAGE)


def test_a_size_of_another_program_has_no_radius(fixed, tmp_path):
    model = onnx.load(fixed / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(SpecError, match=r"bare.onnx does not say its radius.*tile=0"):
        Upscaler(tmp_path / "bare.onnx")
    assert Upscaler(tmp_path / "bare.onnx", tile=0).scale == 2


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_an_engine_says_which_size_it_takes(suffix, fixed):
    file = fixed / f"net{suffix}"
    run = open_engine(file, FILE_ENGINES[file.suffix][0])
    with pytest.raises(SpecError, match=rf"net{suffix} accepts 3 x 3 x 14 x 17, but got an image of 1 x 3 x 14 x 17"):
        run(np.zeros((1, 3, 14, 17), np.float32))


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 12, 13, 20, 31, 97])
def test_fixed_spans_read_what_they_keep_depends_on(length, period):
    size, radius, kept = 12, 3, []
    for span in fixed_spans(length, size, radius, period):
        assert span.read.stop - span.read.start == size and span.read.start % period == 0
        kept += range(span.keep.start, span.keep.stop)
        assert span.keep.start - span.read.start == span.inner.start
        assert span.keep.start in (0, span.read.start + radius)
        assert span.keep.stop == length or span.keep.stop <= span.read.stop - radius
        assert span.read.stop < length + period or length < size
    assert kept == [*range(length)]


# Commands


def test_the_commands(folder, tmp_path):
    pixels = (255 * IMAGE).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    upscale = ["upscale", str(tmp_path / "photo.png"), "-o", str(tmp_path / "large"), "--overwrite", "--model"]
    for options in (["bare.onnx", "--scale", "2"], ["net.pt2"], ["net.ncnn.param", "--colors", "3"]):
        result = CliRunner().invoke(app, [*upscale, str(folder / options[0]), *options[1:], "--json"])
        assert result.exit_code == 0 and json.loads(result.output)["scale"] == 2, result.output
        large = np.asarray(Image.open(tmp_path / "large" / "photo_x2.png")).astype(int)
        assert np.abs(large - Upscaler(NET, engine="torch")(pixels)).max() <= 1
    wrong = CliRunner().invoke(app, [*upscale, str(folder / "bare.onnx"), "--scale", "3"])
    assert wrong.exit_code == 1 and "has scale=2, but got scale=3" in wrong.output


def test_every_format_is_measured(folder, fixed):
    names = ("net.onnx", "net.xml", "net.pt2", "net.ncnn.param", "net.tflite")
    engines = ["onnxruntime", "openvino", "torch", "ncnn", "litert"]
    report = bench_inference(NET, 9, 12, engines=engines, files=[folder / name for name in names], rounds=1)
    rows = [(row.graph, row.engine) for row in report.rows if row.graph.startswith("net")]
    assert rows == [
        ("net.onnx", "onnxruntime"), ("net.onnx", "openvino"), ("net.xml", "openvino"), ("net.pt2", "torch"),
        ("net.ncnn.param", "ncnn"), ("net.tflite", "litert"),
    ]  # fmt: skip
    # Four convolutions, three PReLUs, and the enlarged image, its sum and the shuffle in the words of each.
    assert {size.name: size.operators for size in report.files} == {
        "net.onnx": 10, "net.xml": 14, "net.pt2": 10, "net.ncnn.param": 11, "net.tflite": 10,
    }  # fmt: skip
    kilobytes = {path.name: path.stat().st_size / 1000 for path in folder.iterdir()}
    assert report.files[0].kilobytes == kilobytes["net.onnx"]
    assert report.files[1].kilobytes == pytest.approx(kilobytes["net.xml"] + kilobytes["net.bin"])
    assert re.search(rf"net.pt2 +{report.files[2].kilobytes:.1f} +10\n", str(report))
    with pytest.raises(SpecError, match=r"net.onnx accepts 3 x 3 x 14 x 17, but got an image of 1 x 3 x 9 x 12"):
        bench_inference(NET, 9, 12, engines=["onnxruntime"], files=[fixed / "net.onnx"], rounds=1)
