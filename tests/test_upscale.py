"""Enlarging: tiles that equal the whole, every kind of image, files, and the command."""

import contextlib
import io
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import made
from PIL import Image, ImageCms
from skimage import color, data
from torch import nn
from typer.testing import CliRunner

import reparam.deploy._engines as engines
import reparam.sr._upscale.upscaler
from examples.train_sr import quality
from reparam import SpecError, Upscaler, create_model, export, list_models, save_checkpoint
from reparam.cli import app
from reparam.deploy import _runners as runners
from reparam.deploy._cache import cache_folder
from reparam.deploy._prelu import without_prelu
from reparam.deploy._receptive import Locality, locality
from reparam.deploy._runners import run_onnxruntime
from reparam.sr._upscale import files
from reparam.sr._upscale.color import bicubic, join, split
from reparam.sr._upscale.tiled import Tiled
from reparam.sr._upscale.tiles import spans

PHOTO = data.coffee()[150:203, 200:267]
EXACT = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("TORCH_HOME")
    if before is not None:
        os.environ["TORCH_HOME"] = before


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return {name: made(name) for name in ("repsr_m2c8_x2", "repsr_m2c8_x3_y", "plain_m1c6_x4")}


@pytest.fixture(scope="module")
def doubling(nets) -> Upscaler:
    """What enlarges in most tests; made once, as it measures its network first."""
    return Upscaler(nets["repsr_m2c8_x2"], engine="torch")


def ramp(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


# How far a pixel reaches


@pytest.mark.parametrize(
    ("name", "radius"), [("repsr_m2c8_x2", 4), ("plain_m4c4_x3", 6), ("sesr_m3_x2", 7), ("edsr_m1c4_x4", 6)]
)
def test_radius_of_networks(name, radius):
    net = create_model(name)
    assert locality(net, net.colors) == (radius, 1)
    assert net.training  # it was a copy that ran


def test_radius_of_lopsided_and_dilated_kernels():
    for pad, kernel in (((3, 0, 0, 0), (1, 4)), ((0, 3, 0, 0), (1, 4)), ((0, 0, 3, 0), (4, 1)), ((0, 0, 0, 3), (4, 1))):
        assert locality(nn.Sequential(nn.ConstantPad2d(pad, 0.0), nn.Conv2d(1, 1, kernel)), 1) == (3, 1)
    assert locality(nn.Conv2d(2, 1, 5, padding=6, dilation=3), 2) == (6, 1)
    assert locality(nn.Conv2d(1, 1, 1), 1) == (0, 1)
    dead = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.zeros_(dead.weight)  # counts all the same
    assert locality(dead, 1) == (1, 1)
    far = nn.Conv2d(1, 1, (101, 1), padding=(50, 0)), nn.Conv2d(1, 1, (1, 101), padding=(0, 50))
    assert locality(nn.Sequential(*far), 1) == (50, 1)


class OneColorWide(nn.Module):
    """One color is spread over 5 x 5 pixels, seen by NaN alone (times zero) or by numbers alone (NaN is swallowed)."""

    def __init__(self, color, by_nan):
        super().__init__()
        self.color, self.by_nan = color, by_nan

    def forward(self, x):
        x = x if self.by_nan else x.nan_to_num()
        wide = nn.functional.avg_pool2d(x[:, self.color : self.color + 1], 5, 1, 2)
        return torch.cat([x[:, : self.color], 0 * wide if self.by_nan else wide, x[:, self.color + 1 :]], 1)


@pytest.mark.parametrize("color", [0, 1, 2])
@pytest.mark.parametrize("by_nan", [True, False])
def test_radius_is_that_of_the_farthest_color(color, by_nan):
    assert locality(OneColorWide(color, by_nan), 3) == (2, 1)


class Where(nn.Module):
    """A ReLU that swallows NaN."""

    def forward(self, x):
        return torch.where(x > 0, x, 0.0)


class Negative(nn.Module):
    """Lives below zero only, where no image is."""

    def forward(self, x):
        return torch.where(x < -0.5, x, 0.0)


def test_radius_through_what_swallows_nan():
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 3, padding=1), Where())]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Where(), *layers[:-1])
    assert locality(net, 3) == (4, 1)
    wide = nn.Conv2d(1, 1, 9, padding=4)
    assert locality(nn.Sequential(Where(), wide), 1) == locality(nn.Sequential(Negative(), wide), 1) == (4, 1)


class Everywhere(nn.Module):
    def forward(self, x):
        return x + x.mean((2, 3), keepdim=True)


class EverywhereWithoutNaN(nn.Module):
    def forward(self, x):
        return x + x.nan_to_num().mean((2, 3), keepdim=True)


class Positions(nn.Module):
    """Adds where a pixel lies."""

    def forward(self, x):
        return x + 0.01 * torch.arange(x.shape[3]).to(x)


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError(f"no image of {x.shape[-1]}")


class Overflowing(nn.Module):
    def forward(self, x):
        return x / 0


def test_no_radius():
    for net in (Everywhere(), EverywhereWithoutNaN()):
        with pytest.raises(SpecError, match="reaches farther than 158 pixels .*can only run on whole images"):
            locality(net, 1)
    for net, match in (
        (Positions(), "Positions changes its result when an image is cut, at every step up to 64 pixels"),
        (
            nn.MaxPool2d(2),
            r"MaxPool2d fails for an image of 16 x 16 .*returns \(8, 8\) for 16 x 16 pixels, not a multiple",
        ),
        (Failing(), "Failing fails for an image of 16 x 16 pixels: no image of 16"),
        (Overflowing(), "Overflowing returns values that are not finite for a random image of 16 x 16 pixels"),
    ):
        with pytest.raises(SpecError, match=match):
            locality(net, 1)


def test_a_network_without_a_radius_takes_whole_images():
    net = Everywhere()
    net.scale, net.colors, net.weight = 1, 3, nn.Parameter(torch.zeros(1))
    image = PHOTO[:, :, 0] / 255
    with pytest.raises(SpecError, match="can only run on whole images"):
        Upscaler(net, engine="torch")
    assert np.abs(Upscaler(net, engine="torch", tile=0)(image) - image - image.mean()).max() < 1e-5


# Tiles


@pytest.mark.parametrize("length", [1, 2, 7, 30, 64])
@pytest.mark.parametrize("tile", [1, 5, 8, 64])
def test_spans_cover_an_axis_once(length, tile):
    axis, radius = np.arange(length), 3
    kept = []
    for span in spans(length, tile, radius):
        read = axis[span.read]
        kept += [*read[span.inner]]
        assert (read[span.inner] == axis[span.keep]).all() and len(axis[span.keep]) <= tile
        assert read[0] == max(0, span.keep.start - radius) and read[-1] == min(length, span.keep.stop + radius) - 1
    assert kept == [*axis]


def test_onnx_runtime_runs_prelu_as_a_sum(tmp_path, monkeypatch):
    net = made("plain_m1c6_x2").eval()
    net.body[1].weight.data = torch.tensor([-1.7, 0.0, 0.3, 1.0, 1.5, 40.0])
    export(net, tmp_path / "net.onnx")
    x = torch.randn(2, 3, 11, 14)
    wanted = net(x).detach().numpy()
    for rewritten in (False, True):
        y = run_onnxruntime(tmp_path / "net.onnx", 1, rewritten)(x.numpy())
        assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()
    graph = onnx.load_from_string(without_prelu(tmp_path / "net.onnx")).graph
    assert Counter(node.op_type for node in graph.node)["Mul"] == 4 and "PRelu" not in str(graph)
    monkeypatch.setattr(runners, "find_spec", lambda name: None)
    assert np.array_equal(
        run_onnxruntime(tmp_path / "net.onnx", 1, True)(x.numpy()), run_onnxruntime(tmp_path / "net.onnx", 1)(x.numpy())
    )


def test_slopes_that_are_computed_stay(tmp_path):
    class Computed(nn.Module):
        def forward(self, x):
            return nn.functional.prelu(x, x.mean((0, 2, 3)))

    export(Computed(), tmp_path / "net.onnx", example=torch.rand(1, 3, 5, 7))
    assert without_prelu(tmp_path / "net.onnx") == onnx.load(tmp_path / "net.onnx").SerializeToString()
    assert "PRelu" in str(onnx.load(tmp_path / "net.onnx").graph)


@pytest.mark.parametrize("rest", range(8))
@pytest.mark.parametrize("tile", [1, 5, 8, 64])
def test_what_spans_leave_out_is_a_multiple_of_the_period(rest, tile):
    length, radius, period = 64 + rest, 3, 8
    kept = []
    for span in spans(length, tile, radius, period):
        assert span.read.start % period == (length - span.read.stop) % period == 0
        assert 0 <= span.read.start <= max(0, span.keep.start - radius)
        assert length >= span.read.stop >= min(length, span.keep.stop + radius)
        kept += [*range(length)[span.read][span.inner]]
    assert kept == [*range(length)]


class Sr(nn.Module):
    """A body as a network of 1 or 3 colors."""

    def __init__(self, *layers, scale=1, colors=3):
        super().__init__()
        self.body, self.scale, self.colors = nn.Sequential(*layers), scale, colors

    def forward(self, x):
        return self.body(x)


class Windows(nn.Module):
    """Attention of one head in windows, each second time shifted by half; pads to whole windows, at the end."""

    def __init__(self, channels, size, mode="reflect", centered=False):
        super().__init__()
        self.size, self.mode, self.centered = size, mode, centered
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        down, right = (-size % self.size for size in (height, width))
        up, left = (down // 2, right // 2) if self.centered else (0, 0)
        x = nn.functional.pad(x, (left, right - left, up, down - up), mode=self.mode)
        rows, columns = (size // self.size for size in x.shape[2:])
        parts = self.qkv(x).unflatten(2, (rows, self.size)).unflatten(4, (columns, self.size))
        q, k, v = parts.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).chunk(3, dim=-1)
        z = nn.functional.scaled_dot_product_attention(q, k, v).unflatten(3, (self.size, self.size))
        z = z.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return (x + z)[:, :, up : up + height, left : left + width]


class PadTo(nn.Module):
    """Pads to a multiple and cuts off again: nothing but the border shows it."""

    def __init__(self, multiple, layer):
        super().__init__()
        self.multiple, self.layer = multiple, layer

    def forward(self, x):
        height, width = x.shape[2:]
        y = nn.functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="reflect")
        return self.layer(y)[:, :, :height, :width]


def unshuffled(factor: int) -> list[nn.Module]:
    inside = [nn.Conv2d(3 * factor**2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3 * factor**2, 3, padding=1)]
    return [nn.PixelUnshuffle(factor), *inside, nn.PixelShuffle(factor)]


def conv(channels=3, out=3, kernel=3):
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2)


PERIODIC = {
    "unshuffle 2": (lambda: Sr(*unshuffled(2)), Locality(5, 2)),
    "unshuffle 4": (lambda: Sr(*unshuffled(4)), Locality(11, 4)),
    "unshuffle 2, larger": (
        lambda: Sr(*unshuffled(2)[:-1], nn.PixelShuffle(2), nn.Upsample(scale_factor=2), scale=2),
        Locality(5, 2),
    ),
    "unshuffle 3, luma": (
        lambda: Sr(
            nn.PixelUnshuffle(3), conv(9, 9), nn.PixelShuffle(3), conv(1, 4), nn.PixelShuffle(2), scale=2, colors=1
        ),
        Locality(6, 3),
    ),
    "windows of 8": (lambda: Sr(Windows(3, 8)), Locality(7, 8)),
    "windows of 7": (lambda: Sr(conv(), Windows(3, 7), conv()), Locality(8, 7)),
    "windows of 8, padded on both sides": (lambda: Sr(Windows(3, 8, centered=True)), Locality(7, 8)),
    "padding to 8": (lambda: Sr(PadTo(8, conv())), Locality(1, 8)),
    "padding to 16": (lambda: Sr(PadTo(16, nn.Sequential(conv(3, 8, 5), nn.ReLU(), conv(8)))), Locality(3, 16)),
    "where": (lambda: Sr(conv(3, 8), Where(), conv(8, 8), Where(), conv(8, 12), nn.PixelShuffle(2), scale=2), (3, 1)),
    "lopsided": (lambda: Sr(nn.ConstantPad2d((4, 0, 0, 1), 0.0), nn.Conv2d(3, 3, (2, 5))), Locality(4, 1)),
    "strided": (lambda: Sr(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)), Locality(3, 2)),
}


@pytest.mark.parametrize("kind", PERIODIC)
def test_tiles_of_periodic_networks_equal_the_whole(kind, monkeypatch):
    make, (radius, period) = PERIODIC[kind]
    net = make().eval()
    found = locality(net, net.colors)
    assert found.period == period and radius <= found.radius < radius + period
    monkeypatch.setattr("reparam.sr._upscale.upscaler.locality", lambda *_: found)  # not to be measured for each tile
    whole, *tiled = (Upscaler(net, engine="torch", tile=tile) for tile in (0, 1 + period, 16, 40))
    assert {upscaler._tiled.overlap for upscaler in tiled} == {max(found.radius, period, 2)}
    sizes = [(96, 48)] if "unshuffle" in kind or kind == "strided" else [(53, 67), (64, 61), (49, 72)]
    for height, width in sizes:
        image = np.random.default_rng(0).random((height, width, net.colors), dtype=np.float32)
        wanted = whole(image)
        for upscaler in tiled:
            error = np.abs(upscaler(image) - wanted).max()
            assert error <= 1e-5 * np.abs(wanted).max(), (height, width, upscaler._tiled.tile)


@pytest.mark.parametrize(
    ("kind", "measured"),
    [("windows of 8", Locality(7, 7)), ("windows of 8", Locality(7, 1)), ("unshuffle 4", Locality(2, 4))],
)
def test_a_tile_that_differs_is_refused_before_the_first_result(kind, measured, monkeypatch):
    monkeypatch.setattr(reparam.sr._upscale.upscaler, "locality", lambda net, colors: measured)
    upscaler = Upscaler(PERIODIC[kind][0](), engine="torch", tile=16)
    with pytest.raises(SpecError, match=r"Sr in tiles, .* differs from itself .* by [0-9.e-]+ of the .*tile=0"):
        upscaler(np.zeros((96, 96, 3), np.float32))


def test_networks_of_spandrel():
    from spandrel.architectures.MoSR import MoSR
    from spandrel.architectures.NAFNet import NAFNet
    from spandrel.architectures.SAFMN import SAFMN

    nets = (SAFMN(dim=4, n_blocks=1, upscaling_factor=2), MoSR(upscale=2, n_block=1, dim=4))
    image = np.random.default_rng(0).random((48, 72, 3))
    for net, period in zip(nets, (8, 1)):
        tiled, whole = (Upscaler(Sr(net.eval(), scale=2), engine="torch", tile=tile) for tile in (16, 0))
        wanted = whole(image)
        assert tiled.period == period and np.abs(tiled(image) - wanted).max() < 1e-5 * np.abs(wanted).max()
    pooled = Sr(NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1]).eval())
    for place in pooled.parameters():  # whose branches start at zero
        nn.init.uniform_(place, -0.3, 0.3)
    with pytest.raises(SpecError, match="a pixel of Sr reaches farther than 158 pixels"):
        Upscaler(pooled, engine="torch")


class OfItsSize(nn.Module):
    """Pools into as many cells as whole eights fit in: the same everywhere only where none is left."""

    def forward(self, x):
        cells = nn.functional.adaptive_max_pool2d(x, [size // 8 for size in x.shape[2:]])
        return x * nn.functional.interpolate(cells, x.shape[2:], mode="nearest")


def test_each_rest_of_the_period_is_proved():
    net = Sr(OfItsSize(), conv())
    image = np.random.default_rng(0).random((96, 64, 3))
    upscaler, whole = (Upscaler(net, engine="torch", tile=tile) for tile in (16, 0))
    assert np.abs(upscaler(image) - whole(image)).max() < 1e-5
    for cut in (image[:-3], image[:, 3:]):
        with pytest.raises(SpecError, match=r"Sr in tiles, .* of 5[0-9] x 48 random|of 48 x 5[0-9] random"):
            upscaler(cut)


@pytest.mark.parametrize("channels", [3, 4])
def test_what_is_interpolated_has_its_own_overlap(channels):
    image = np.random.default_rng(0).random((30, 40, channels))
    for colors in (1, 3):  # a network of radius 0: chroma and alpha reach farther than it does
        net = Sr(nn.Conv2d(colors, 4 * colors, 1), nn.PixelShuffle(2), scale=2, colors=colors)
        whole, tiled = (Upscaler(net, engine="torch", tile=tile) for tile in (0, 7))
        assert tiled.radius == 0 and np.abs(tiled(image) - whole(image)).max() < 1e-6


@pytest.mark.parametrize("engine", [*EXACT, "torch"])
@pytest.mark.parametrize("name", ["repsr_m2c8_x2", "repsr_m2c8_x3_y"])
def test_tiles_equal_the_whole(engine, name, nets):
    images = [np.dstack([PHOTO, PHOTO[:, :, 1]])[:, :, :channels] / 255 for channels in (1, 3, 4)]
    whole, *tiled = (Upscaler(nets[name], engine=engine, tile=tile, threads=1) for tile in (0, 9, 40))
    for image in images:
        wanted = whole(image)
        for upscaler in tiled:
            assert np.abs(upscaler(image) - wanted).max() <= (0 if engine in EXACT else 1e-6)


def test_less_overlap_would_show(nets):
    upscaler = Upscaler(nets["repsr_m2c8_x2"], engine="onnxruntime", tile=16, threads=1)
    whole = Upscaler(nets["repsr_m2c8_x2"], engine="onnxruntime", tile=0, threads=1)(PHOTO / 255)
    assert (upscaler(PHOTO / 255) == whole).all()
    upscaler._tiled.overlap -= 1
    assert not (upscaler(PHOTO / 255) == whole).all()


# Numbers that are not finite


class Large(nn.Module):
    """Passes 65504 inside, which float16 cannot hold, where the image is bright; gives it back as it was."""

    scale, colors = 1, 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 1, 1), 100_000 / 2))

    def forward(self, x):
        inside = x * self.weight * 2
        return inside - inside + x


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_what_passes_float16_is_done_again_in_float32(engine):
    net = Large().half()
    with torch.no_grad():
        assert not net(torch.ones(1, 3, 4, 4).half()).isfinite().all()
    image = np.random.default_rng(0).random((40, 30, 3), dtype=np.float32)
    image[:16] *= 0.1  # these tiles are fine
    for tile in (0, 16):
        assert np.abs(Upscaler(net, engine=engine, tile=tile)(image) - image).max() < 2e-3
    assert (Upscaler(net, engine=engine)(np.full((20, 20, 3), 255, np.uint8)) == 255).all()
    assert next(net.parameters()).dtype == torch.float16


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tile, value):
    net = made("plain_m1c6_x2").eval()
    net.body[2].weight.data[0, 1, 2, 0] = value
    with pytest.raises(
        SpecError, match="PlainSR cannot enlarge anything: 1 of the 324 values of body.2.weight are not"
    ):
        Upscaler(net, engine="torch", tile=tile)
    net = Sr(conv())
    net.register_buffer("mask", torch.full((2,), -value))
    with pytest.raises(SpecError, match="2 of the 2 values of mask") if value != value else contextlib.nullcontext():
        Upscaler(net, engine="torch", tile=tile)  # a mask may be infinite


class Root(nn.Module):
    """Is finite of 0 to 1, but not of values below."""

    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_tile_that_is_not_finite_is_an_error(tile, dtype):
    net = Sr(nn.Conv2d(3, 3, 1, bias=False), Root()).to(dtype)
    nn.init.constant_(net.body[0].weight, 1)
    upscaler = Upscaler(net, engine="torch", tile=tile)
    image = np.full((40, 20, 3), 0.5, np.float32)
    assert np.isfinite(upscaler(image)).all()
    image[30, 7] = -0.1
    too = ", in float32 too" if dtype == torch.float16 else "use float32\\)$"
    with pytest.raises(SpecError, match=rf"Sr returns 3 values of [0-9]+ that are not finite for .*{too}"):
        upscaler(image)
    image[30, 7] = np.nan  # which the caller put in
    assert np.isnan(upscaler(image)).sum() == 3


@pytest.mark.parametrize("tile", [0, 4])
def test_a_file_whose_weights_passed_float16(tile, tmp_path):
    export(Sr(nn.Conv2d(3, 3, 1)), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    for weight in model.graph.initializer:
        numbers = onnx.numpy_helper.to_array(weight)
        if numbers.ndim == 4:  # what a converter to float16 makes of 100,000
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(numbers, np.inf), weight.name))
    onnx.save(model, tmp_path / "half.onnx")
    upscaler = Upscaler(tmp_path / "half.onnx", engine="onnxruntime", tile=tile)
    with pytest.raises(SpecError, match=r"half.onnx returns [0-9]+ values of [0-9]+ that are not .*65504 in float16"):
        upscaler(np.full((8, 9, 3), 0.25, np.float32))


def test_a_scale_that_is_not_that_of_the_output():
    net = Sr(conv(3, 12), nn.PixelShuffle(2), scale=1)
    for tile in (0, 4):
        upscaler = Upscaler(net, engine="torch", tile=tile)
        with pytest.raises(SpecError, match=r"Sr returns \(1, 3, [0-9]+, [0-9]+\) for .* its scale=1 means"):
            upscaler(PHOTO[:9, :8])


# Flat images


class Odd(nn.Module):
    scale = 1

    def __init__(self, function, colors=3):
        super().__init__()
        self.function, self.colors, self.weight = function, colors, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.function(x) * self.weight


@pytest.mark.parametrize(
    ("function", "colors", "match"),
    [
        (
            lambda x: x.clamp(51, 255),
            3,
            r"Odd returns \[\[51.0, .*It is off by 50.750; by 0.000 if its range is 0 to 255",
        ),
        (lambda x: x.clamp(-1, 0.5), 3, "off by 0.250; by .*, by 0.000 for -1 to 1, and by"),
        (
            lambda x: x.flip(1),
            3,
            r"\[\[0.75, 0.5, 0.25\], .* for flat images of \[\[0.25, .* by 0.000 if it returns BGR",
        ),
        (lambda x: x * 219 / 255 + 16 / 255, 1, r"Odd returns \[\[0.277\], \[0.707\]\] for .* It is off by 0.043"),
        (lambda x: x + 0.05 * (torch.arange(x.shape[3]) % 2 - 0.5), 3, "Odd returns .*It is off by 0.025"),
    ],
)
def test_what_does_not_keep_flat_images_is_told(function, colors, match):
    with pytest.warns(UserWarning, match=match) as found:
        Upscaler(Odd(function, colors), engine="torch", tile=0)
    assert found[0].filename == __file__ and len(found) == 1


def test_an_untrained_network_and_its_file_are_told_of(nets, tmp_path):
    export(nets["repsr_m2c8_x2"], tmp_path / "net.onnx")
    for model, name in ((nets["repsr_m2c8_x2"], "RepSR"), (tmp_path / "net.onnx", "net.onnx")):
        with pytest.warns(
            UserWarning, match=rf"{name} returns .* for flat images of .* Train it, or wrap it in a forward"
        ):
            Upscaler(model)


@pytest.mark.parametrize("name", [name for name in list_models(pretrained=True) if "m4c16" in name])
def test_trained_networks_keep_flat_images(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Upscaler(name, engine="torch")


@pytest.mark.parametrize("function", [lambda x: x / 0, lambda x: x.reshape(1, 3, 5, 5), lambda x: x + 0.009])
def test_flat_images_that_say_nothing(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Upscaler(Odd(function), engine="torch", tile=0)


# The network on images


def test_an_rgb_network_gets_the_image_as_it_is(nets):
    net = nets["repsr_m2c8_x2"]
    x = torch.rand(2, 3, 21, 30)
    y = net(x)
    for engine in engines.installed_engines():
        if engine not in ("torch-compile", "openvino-bf16"):
            assert (Upscaler(net, engine=engine)(x) - y).abs().max() <= 1e-5 * y.abs().max(), engine
    assert (Upscaler(net, engine="openvino-bf16")(x) - y).abs().max() <= 0.05 * y.abs().max()


def test_a_luma_network_gets_y_and_gives_it(nets):
    net, image = nets["repsr_m2c8_x3_y"], PHOTO / 255
    large = Upscaler(net, engine="torch")(image)
    ycbcr = color.rgb2ycbcr(image)
    y = net(torch.from_numpy(ycbcr[None, None, :, :, 0] / 255).float())[0, 0].detach().numpy() * 255
    chroma = bicubic(torch.from_numpy(ycbcr.transpose(2, 0, 1)[None, 1:]), 3)[0].numpy()
    back = color.rgb2ycbcr(large)
    assert np.abs(back[:, :, 0] - y).max() < 1e-3
    assert np.abs(back[:, :, 1:] - chroma.transpose(1, 2, 0)).max() < 1e-3


@pytest.mark.parametrize(("channels", "colors"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3), (4, 1), (4, 3)])
@pytest.mark.parametrize("scale", [2, 3])
def test_constant_images_stay_what_they_are(channels, colors, scale):
    x = torch.tensor([0.2, 0.7, 0.4, 1.0])[None, :channels, None, None].expand(1, channels, 4, 5)
    asked = split(x, colors)
    assert asked.shape == (1, colors, 4, 5) and asked.dtype == torch.float32
    large = join(asked.repeat_interleave(scale, 2).repeat_interleave(scale, 3), x, colors, scale)
    assert large.shape == (1, channels, 4 * scale, 5 * scale)
    assert (large - x[:, :, :1, :1]).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic(scale):
    x = torch.rand(1, 2, 20, 30)
    large = bicubic(x, scale)
    assert large.dtype == torch.float32 and large.shape == (1, 2, 20 * scale, 30 * scale)
    for channel in range(2):  # of PIL, whose edges are other ones
        wanted = Image.fromarray(x[0, channel].numpy()).resize((30 * scale, 20 * scale), Image.Resampling.BICUBIC)
        inner = slice(3 * scale, -3 * scale)
        assert np.abs(large[0, channel].numpy() - np.asarray(wanted))[inner, inner].max() < 1e-6
    around = bicubic(nn.functional.pad(x, (5, 5, 5, 5), mode="replicate"), scale)
    assert (around[:, :, 5 * scale :, 5 * scale :][:, :, : 20 * scale, : 30 * scale] == large).all()


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 2), (6, 7, 3), (6, 7, 4), (1, 1, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_arrays_keep_their_kind(shape, dtype, doubling):
    largest = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    x = (np.random.default_rng(0).random(shape) * largest).astype(dtype)
    y = doubling(x)
    assert y.dtype == dtype and y.shape == (2 * shape[0], 2 * shape[1], *shape[2:])
    exact = doubling(x / largest)
    wanted = (np.rint(exact * largest).clip(0, largest) if largest > 1 else exact).astype(np.float64)
    assert np.abs(y.astype(np.float64) - wanted).max() <= (1 if largest > 1 else 2e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_and_clipped(dtype, nets):
    upscaler, white = Upscaler(nets["repsr_m2c8_x2"], engine="torch"), np.iinfo(dtype).max
    image = (ramp(6, 7, 3) / 255 * white).astype(dtype)
    exact = white * upscaler(image / np.float32(white)).astype(np.float64)
    assert np.abs(upscaler(image) - exact.clip(0, white)).max() < 0.52


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f8", ">f8"])
def test_numbers_of_either_byte_order(dtype, doubling):
    x = np.random.default_rng(0).random((6, 7, 3)) * (65535 if "u" in dtype else 1)
    native = np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(doubling(x.astype(dtype)), doubling(x.astype(native)))
    assert doubling(x.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("channels", [3, 4])
def test_gray_that_is_stored_as_rgb_stays_gray(channels, colors, nets, tmp_path):
    upscaler = Upscaler(nets["repsr_m2c8_x2" if colors == 3 else "repsr_m2c8_x3_y"], engine="torch", tile=24)
    image = PHOTO[:, :, [0, 0, 0, 1][:channels]]
    planes = torch.from_numpy(image.transpose(2, 0, 1).copy())
    for large in (upscaler(image), upscaler(image / 255), upscaler(planes).permute(1, 2, 0).numpy()):
        assert np.array_equal(large[..., 0], large[..., 1]) and np.array_equal(large[..., 1], large[..., 2])
        assert large.std() > 0
    Image.fromarray(image).save(tmp_path / "a.png")
    upscaler.file(tmp_path / "a.png", tmp_path / "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), upscaler(image))
    image = image.copy()
    image[-1, -1, 0] ^= 1  # one pixel is colored: all are free to be
    large = upscaler(image)
    assert colors == 1 or not np.array_equal(large[..., 0], large[..., 1])


def test_all_of_an_image_says_whether_it_is_gray(nets):
    upscaler = Upscaler(nets["repsr_m2c8_x2"], engine="torch", tile=300)
    image = np.repeat(np.random.default_rng(0).random((600, 8, 1)), 3, axis=2)
    for last in (0.0, 0.5):
        image[-1, 0, 0] += last
        large = upscaler(image)
        assert np.array_equal(large[..., 0], large[..., 1]) == (last == 0)


def test_each_image_of_a_batch_is_gray_or_not_by_itself(nets):
    upscaler = Upscaler(nets["repsr_m2c8_x2"], engine="torch")
    batch = torch.rand(3, 3, 20, 24)
    batch[1] = batch[1, :1]
    large = upscaler(batch)
    assert torch.equal(large[1, 0], large[1, 2]) and not torch.equal(large[0, 0], large[0, 2])
    for index in range(3):
        assert (large[index] - upscaler(batch[index])).abs().max() < 1e-6


def test_a_batch_goes_through_torch_as_one_and_where_it_is():
    shapes = []

    class Seen(nn.Module):
        scale, colors = 1, 3

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            shapes.append((tuple(x.shape), x.device.type))
            return x * self.weight

    upscaler = Upscaler(Seen(), engine="torch", tile=16)
    del shapes[:]
    batch = torch.rand(5, 3, 16, 16)
    assert torch.equal(upscaler(batch), batch) and shapes == [((5, 3, 16, 16), "cpu")]


@pytest.mark.parametrize("name", ["repsr_m2c8_x2", "repsr_m2c8_x3_y"])
def test_what_is_hidden_does_not_darken_what_is_shown(name, nets):
    upscaler = Upscaler(nets[name], engine="torch", tile=20)
    image = np.full((48, 56, 4), 200, np.uint8)
    flat = upscaler(image[..., :3])[24:72, 24:72]
    image[..., 3] = 0
    image[12:30, 14:40, 3] = 255
    shown = image[..., 3:] > 0
    black = np.where(shown, image, 0).astype(np.uint8)
    for hidden in (image, black):
        large = upscaler(hidden)
        seen = large[..., -1] > 0
        assert large[..., :3][seen].min() >= flat.min() and large[..., :3][seen].max() <= flat.max()


def test_hidden_colors_do_not_matter_in_any_tile():
    net = Sr(conv(kernel=9))  # which looks far, and at all alike
    rng, alpha = np.random.default_rng(0), np.zeros(PHOTO.shape[:2], np.float32)
    alpha[5:20, 7:30], alpha[30:48, 40:60] = 1, rng.uniform(0.1, 1, (18, 20))
    shown = alpha[..., None] > 0
    one, other = (
        np.dstack([np.where(shown, PHOTO / 255, hidden), alpha]).astype(np.float32)
        for hidden in (0, rng.random(PHOTO.shape))
    )
    upscalers = [Upscaler(net, engine="torch", tile=tile) for tile in (0, 5, 9, 16, 300)]
    wanted, *others = (upscaler(image) for upscaler in upscalers for image in (one, other))
    seen = wanted[..., 3] > 0
    for large in others:
        assert np.array_equal(large[..., 3], wanted[..., 3]) and np.abs(large - wanted)[seen].max() < 1e-6


def test_a_picture_that_shows_nothing_keeps_its_colors(doubling):
    image = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    assert np.array_equal(doubling(image)[..., :3], doubling(PHOTO))


# Textures


@pytest.mark.parametrize("kind", ["float", "uint8", "tensor", "file", "alpha"])
@pytest.mark.parametrize("tile", [7, 64])
def test_a_texture_is_enlarged_as_if_it_lay_beside_itself(tile, kind, nets, tmp_path):
    wrap, pad = (Upscaler(nets["repsr_m2c8_x2"], engine="torch", tile=tile, edges=edges) for edges in ("wrap", "pad"))
    image = np.random.default_rng(0).integers(0, 256, (13, 9, 4 if kind == "alpha" else 3), np.uint8)
    image = image / np.float32(255) if kind == "float" else image
    wanted = pad(np.tile(image, (7, 7, 1)))[78:104, 54:72]
    if kind == "tensor":
        found = wrap(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    elif kind == "file":
        Image.fromarray(image).save(tmp_path / "a.png")
        wrap.file(tmp_path / "a.png", tmp_path / "b.png")
        found = np.asarray(Image.open(tmp_path / "b.png"))
    else:
        found = wrap(image)
    assert np.abs(found.astype(float) - wanted).max() <= (1e-6 if kind == "float" else 1)
    assert np.abs(pad(image).astype(float) - wanted).max() > (1e-3 if kind == "float" else 1)


def test_a_texture_for_windows(monkeypatch):
    net = PERIODIC["windows of 8"][0]().eval()
    monkeypatch.setattr("reparam.sr._upscale.upscaler.locality", lambda *_: Locality(7, 8))
    wrap, pad = (Upscaler(net, engine="torch", tile=24, edges=edges) for edges in ("wrap", "pad"))
    image = np.random.default_rng(0).random((16, 24, 3), np.float32)
    assert np.abs(wrap(image) - pad(np.tile(image, (3, 3, 1)))[16:32, 24:48]).max() < 1e-5


def test_edges_that_there_are_not(nets):
    with pytest.raises(SpecError, match='edges must be "pad" or "wrap", but got \'mirror\''):
        Upscaler(nets["repsr_m2c8_x2"], edges="mirror")
    with pytest.raises(SpecError, match="but got 'wrap' with tile=0, which does not tell how far a pixel reaches"):
        Upscaler(nets["repsr_m2c8_x2"], edges="wrap", tile=0)


@pytest.mark.parametrize("shape", [(3, 6, 7), (1, 6, 7), (2, 3, 6, 7), (2, 4, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.float64, torch.bfloat16])
def test_tensors_keep_their_kind(shape, dtype, doubling):
    x = torch.rand(shape).to(dtype) if dtype.is_floating_point else torch.randint(0, 256, shape).to(dtype)
    y = doubling(x)
    assert y.dtype == dtype and y.shape == (*shape[:-2], 12, 14)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "RGBX", "La"])
def test_images_of_pil(mode, doubling):
    rgb = Image.fromarray(PHOTO)
    if mode == "I;16":
        image = Image.fromarray(PHOTO[:, :, 0].astype(np.uint16) * 257)
    elif mode in ("La", "PA"):
        image = rgb.convert("RGBA" if mode == "PA" else "LA").convert(mode)
    else:
        image = rgb.convert(mode)
    large = doubling(image)
    kept = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "La": "LA"}
    assert large.mode == kept.get(mode, mode) and large.size == (2 * image.width, 2 * image.height)


def test_a_color_that_stands_for_transparency(doubling):
    image = Image.fromarray(PHOTO[:, :, 0] // 2 + 1)
    image.info["transparency"] = 200
    large = doubling(image)
    assert large.mode == "LA" and large.getchannel("A").getextrema() == (255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, doubling, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
    deep = PHOTO.astype(np.uint16) * 257
    import cv2

    kind = [cv2.IMAGE_METADATA_EXIF]
    cv2.imwriteWithMetadata(
        str(tmp_path / "b.png"), deep[:, :, ::-1], kind, [np.frombuffer(exif.tobytes()[6:], np.uint8)]
    )
    upright = {0: PHOTO, 1: PHOTO[:, ::-1], 2: PHOTO[::-1, ::-1], 3: PHOTO[::-1]}
    upright |= {4 + index: image.swapaxes(0, 1) for index, image in enumerate([PHOTO, PHOTO[::-1], PHOTO[::-1, ::-1]])}
    upright[7] = PHOTO[:, ::-1].swapaxes(0, 1)
    expected = doubling(np.ascontiguousarray(upright[orientation - 1]))
    for name in ("a", "b"):
        doubling.file(tmp_path / f"{name}.png", tmp_path / f"{name}_x2.png")
        with Image.open(tmp_path / f"{name}_x2.png") as large:
            assert np.abs(np.asarray(large).astype(int) - expected).max() <= 1
            assert large.getexif().get(0x0112, 1) == 1 and large.getexif()[0x010F] == "maker"


# Files


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_files_keep_their_profile(suffix, doubling, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / f"a{suffix}", icc_profile=PROFILE)
    doubling.file(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as large:
        assert large.size == (2 * PHOTO.shape[1], 2 * PHOTO.shape[0])
        assert large.info["icc_profile"] == PROFILE


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_keep_16_bits(suffix, channels, doubling, tmp_path):
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (9, 8, channels)).astype(np.uint16)
    turned = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep[:, :, turned])
    doubling.file(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    large = np.atleast_3d(cv2.imread(str(tmp_path / f"b{suffix}"), -1))
    assert large.dtype == np.uint16
    assert (large[:, :, turned] == doubling(deep)).all()
    doubling.file(tmp_path / f"a{suffix}", tmp_path / "b.webp")
    with Image.open(tmp_path / "b.webp") as shallow:
        assert shallow.size == (16, 18)


def test_a_file_that_fails_leaves_what_was_there(doubling, tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([PHOTO, PHOTO[:, :, 0]])).save(tmp_path / "alpha.png")
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "old.jpg").write_bytes(b"old")
    with pytest.raises(
        SpecError,
        match=r"cannot write old.jpg: it would have transparency, which .jpg cannot hold; .* for example .png",
    ):
        doubling.file(tmp_path / "alpha.png", tmp_path / "old.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(files.Photo, "_save", lambda self, large, path: path.write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            doubling.file(tmp_path / "a.png", tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == (tmp_path / "old.jpg").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "alpha.png", "old.jpg", "old.png"]


def test_bad_files(doubling, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "png")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:2000])
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1])]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    for name, match in (
        ("text.png", r"cannot read .*text.png as an image"),
        ("half.png", r"cannot read .*half.png as an image"),
        ("film.webp", "2 frames"),
    ):
        with pytest.raises(SpecError, match=match):
            doubling.file(tmp_path / name, tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        doubling.file(tmp_path / "nothing.png", tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        doubling.file(tmp_path / "a.png", tmp_path / "no" / "x.png")
    with pytest.raises(SpecError, match=r"cannot write x.gif: the suffix must be one of .png, .jpg"):
        doubling.file(tmp_path / "a.png", tmp_path / "x.gif")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "same.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(SpecError, match=r"same.png: it is .*a.png, which is one of its sources"):
        doubling.file(tmp_path / "a.png", tmp_path / "same.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert not (tmp_path / "x.png").exists()


# What cannot be


def test_bad_images_and_networks(nets, doubling):
    for image, match in (
        (ramp(3, 4, 5), r"C of 1 to 4, and not empty, but got \(3, 4, 5\)"),
        (ramp(0, 4, 3), r"not empty, but got \(0, 4, 3\)"),
        (ramp(4), r"but got \(4,\)"),
        (
            ramp(3, 4).astype(np.int64),
            "uint8, uint16 or floats of 0 to 1, but got int64 of [0-9]+ to 2.*; convert it to one",
        ),
        (ramp(3, 4) > 128, "but got bool of False to True; convert it to 0 and 255 in uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "but got int32 of 0 to 0; convert it to one of them"),
        (ramp(3, 4) / 1.0, "an image of floats must have values of 0 to 1, but got [0-9]+ to 2[0-9]+; scale it first"),
        (torch.full((1, 2, 2), -1.0), "must have values of 0 to 1, but got -1 to -1"),
        (torch.rand(0, 3, 4, 4), r"not empty, but got \(0, 3, 4, 4\)"),
        (np.zeros((1, 2, 3, 4)), r"not empty, but got \(1, 2, 3, 4\)"),
        (torch.rand(3, 4), r"\(C, H, W\) or \(N, C, H, W\) with C of 1 to 4, and not empty, but got \(3, 4\)"),
        (
            Image.new("I", (3, 4), 70_000),
            "the PIL image of mode I holds 70000 to 70000 and only 8 bits, or 16",
        ),
        ([1, 2], "a PIL.Image, a numpy array or a tensor, but got list"),
        (Image.new("F", (3, 4)), "pass a numpy array, uint16 or floats of 0 to 1"),
    ):
        with pytest.raises(SpecError, match=match):
            doubling(image)
    with pytest.raises(SpecError, match="'tensorrt'; choose one of auto, torch, torch-compile, onnxruntime"):
        Upscaler(nets["repsr_m2c8_x2"], engine="tensorrt")
    with pytest.raises(SpecError, match="Conv2d has scale=None and colors=None; give it the attributes"):
        Upscaler(nn.Conv2d(3, 3, 3))
    with pytest.raises(
        SpecError, match="'nothing' is neither a file nor a network with weights; there are repsr_m4c16_x2"
    ):
        Upscaler("nothing")
    with pytest.raises(SpecError, match="tile=-1"):
        Upscaler(nets["repsr_m2c8_x2"], tile=-1)


def test_an_engine_that_is_not_installed(nets, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: name == "torch" or None)
    with pytest.raises(SpecError, match=r"needs the package openvino: pip install 'reparam\[openvino\]'"):
        Upscaler(nets["repsr_m2c8_x2"], engine="openvino")
    assert Upscaler(nets["repsr_m2c8_x2"]).engine == "torch"  # auto


def test_auto_takes_the_fastest_and_remembers(nets, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    seconds = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(engines, "_seconds", lambda engine, colors: next(seconds))
    assert Upscaler(nets["plain_m1c6_x4"]).engine == "onnxruntime"
    assert Upscaler(nets["plain_m1c6_x4"]).engine == "onnxruntime"  # no second trial, which would find no time
    assert len(list(cache_folder().glob("engine-*.json"))) == 1


class Scaled(nn.Module):
    """Twice with one name: the factor is in no state dict, as what a forward does is not."""

    scale, colors = 1, 3

    def __init__(self, factor):
        super().__init__()
        self.factor, self.weight = factor, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight * self.factor


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "ncnn"])
def test_a_file_of_the_cache_is_used_if_it_holds_the_network(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    image = PHOTO / np.float32(510)
    for factor in (1.0, 2.0):
        assert np.abs(Upscaler(Scaled(factor), engine=engine)(image) - image * factor).max() < 1e-6
    files = sorted((tmp_path / "reparam").iterdir())
    assert len(files) == (1 if engine == "onnxruntime" else 2)
    for file in files:
        file.write_bytes(file.read_bytes()[:-20])
    assert np.abs(Upscaler(Scaled(2.0), engine=engine)(image) - image * 2).max() < 1e-6
    monkeypatch.setattr(engines, "export", None)  # not needed again
    Upscaler(Scaled(2.0), engine=engine)
    monkeypatch.setattr(engines, "_EXPORT", engines._EXPORT + 1)
    with pytest.raises(TypeError):
        Upscaler(Scaled(2.0), engine=engine)


def test_a_network_in_bfloat16_on_an_engine(nets):
    net = made("repsr_m2c8_x2").bfloat16()
    large = Upscaler(net, engine="onnxruntime")(PHOTO / 255)
    assert np.abs(large - Upscaler(nets["repsr_m2c8_x2"], engine="onnxruntime")(PHOTO / 255)).max() < 0.05


def test_the_users_network_is_left_as_it_is(nets):
    net = create_model("repsr_m1c4_x2")
    net(torch.rand(2, 3, 8, 8))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(Exception, match="batch statistics"):
        Upscaler(net, engine="torch")
    Upscaler(net.eval(), engine="torch")(PHOTO)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [type(layer).__name__ for layer in net.body] == ["RepSRBlock", "PReLU", "RepSRBlock", "PReLU", "RepSRBlock"]


# Weights, and the command


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_shipped_weights_are_better_than_bicubic(name):
    upscaler = Upscaler(name, engine="torch")
    for photo in (data.astronaut()[:384, :384], data.coffee()[:384, :384]):
        low, high = quality.shrink(photo.transpose(2, 0, 1), upscaler.scale)  # as MATLAB does
        ours = upscaler(np.ascontiguousarray(low.transpose(1, 2, 0))).transpose(2, 0, 1)
        ours_db, theirs_db = (
            quality.quality(quality.luma(large), quality.luma(high), upscaler.scale).psnr_db
            for large in (ours, quality.bicubic(low, upscaler.scale))
        )
        assert ours_db > theirs_db + 0.5


def run(*arguments: object):
    return CliRunner().invoke(app, ["upscale", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command(nets, tmp_path, doubling):
    save_checkpoint(nets["repsr_m2c8_x2"], tmp_path / "net.safetensors")
    folder, out = tmp_path / "in", tmp_path / "new" / "out"
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / "a.png")
    Image.fromarray(PHOTO).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("no image")
    model = ("--model", tmp_path / "net.safetensors", "--engine", "torch")
    result = run(folder, "-o", out, *model)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["a_x2.png", "b_x2.jpg"]
    assert (np.asarray(Image.open(out / "a_x2.png")) == doubling(PHOTO)).all()
    again = run(folder, "-o", out, *model)
    assert again.exit_code == 1 and "is there already" in again.output
    (folder / "c.png").write_text("no image")
    mixed = run(folder, "-o", out, *model, "--overwrite", "--suffix", "webp")
    assert mixed.exit_code == 1 and "c.png" in mixed.output
    assert sorted(path.name for path in out.iterdir()) == ["a_x2.png", "a_x2.webp", "b_x2.jpg", "b_x2.webp"]
    mixed = run(folder, "-o", out, *model, "--overwrite", "--json")
    found = json.loads(mixed.stdout)
    assert mixed.exit_code == 1 and (found["engine"], found["scale"]) == ("torch", 2)
    good, _, bad = found["files"]
    assert good == {"source": str(folder / "a.png"), "target": str(out / "a_x2.png"), "error": None}
    assert bad["target"] is None and "c.png" in bad["error"]
    assert (found["there"], found["passed_over"]) == (0, 1)


def test_a_batch_of_folders_goes_on_and_counts(nets, tmp_path):
    save_checkpoint(nets["repsr_m2c8_x2"], tmp_path / "net.safetensors")
    folder, out = tmp_path / "in", tmp_path / "in" / "large"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "c.gif", "deep/d.bmp"):
        Image.fromarray(PHOTO).save(folder / name)
    for name in ("notes.txt", "deep/.hidden"):
        (folder / name).touch()
    Image.fromarray(PHOTO).resize((5000, 4000)).save(folder / "e.webp")
    model = ("-r", "--model", tmp_path / "net.safetensors", "--engine", "torch", "--max-pixels", "1000000")
    first = run(folder, tmp_path / "none.png", "-o", out, *model)
    assert first.exit_code == 1
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "a_x2.png",
        "deep/b_x2.png",
        "deep/d_x2.bmp",
    ]
    assert f"error: {folder / 'c.gif'}: .gif cannot be written; name a format with --suffix" in first.output
    assert f"error: {tmp_path / 'none.png'}: there is no file" in first.output
    assert "e.webp: cannot read" in first.output and "are 20,000,000, more than max_pixels=1,000,000" in first.output
    assert "3 enlarged, 3 failed, 2 passed over (not images)" in first.output
    (folder / "e.webp").unlink()
    (out / "a_x2.png").unlink()
    second = run(folder, "-o", out, *model, "--skip", "--suffix", "png")
    assert second.exit_code == 0, second.output
    assert "3 enlarged, 1 there already, 2 passed over (not images)" in second.output
    assert sorted(path.name for path in out.rglob("*.png")) == ["a_x2.png", "b_x2.png", "c_x2.png", "d_x2.png"]


def test_ending_a_command_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    strips = Tiled.strips

    def ended(self, *arguments):
        yield next(strips(self, *arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(Tiled, "strips", ended)
    result = run(tmp_path / "a.png", "-o", tmp_path / "out", "--tile", "32", "--engine", "torch")
    assert result.exit_code != 0 and [*(tmp_path / "out").iterdir()] == []


def test_the_command_takes_textures(tmp_path):
    Image.fromarray(PHOTO[:20, :24]).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "-o", tmp_path, "--engine", "torch", "--edges", "wrap").exit_code == 0
    wanted = Upscaler("repsr_m4c16_x2", engine="torch", edges="wrap")(PHOTO[:20, :24])
    assert (np.asarray(Image.open(tmp_path / "a_x2.png")) == wanted).all()
    for edges, tile, match in (("mirror", 256, "edges must be"), ("wrap", 0, "with tile=0")):
        result = run(tmp_path / "a.png", "-o", tmp_path, "--edges", edges, "--tile", tile, "--engine", "torch")
        assert result.exit_code == 1 and match in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png", "-o", "out"), "there is no file missing.png"),
        (("a.png", "one/a.png", "-o", "out"), "would both become"),
        (("a.png", "-o", "out", "--suffix", ".gif"), "cannot write photo.gif: the suffix must be one of .png"),
        (("a.png", "-o", "out", "--model", "nothing"), "nor a network with weights"),
        (("empty", "-o", "out"), "no image in empty"),
    ],
)
def test_bad_commands(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one").mkdir()
    Path("empty").mkdir()
    for name in ("a.png", "one/a.png"):
        Image.fromarray(PHOTO).save(name)
    result = run(*arguments, "--engine", "torch")
    assert result.exit_code == 1 and message in result.output
    assert not Path("out").exists()
