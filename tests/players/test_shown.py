"""Shaders run: in ffmpeg's libplacebo, the renderer of mpv, and in WebGPU. `pytest tests/players`.

They need `apt-get install ffmpeg mesa-vulkan-drivers`, whose driver computes on the processor, and the package wgpu.
"""

import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import made
from plain_nets import Of, conv
from torch import nn

from reparam import create_model, export
from reparam.deploy._shader.player import player, run_player
from reparam.deploy._shader.trial import picture
from reparam.deploy._shader.webgpu import run_webgpu, webgpu
from reparam.sr import list_models

ENGINES = {".glsl": "libplacebo", ".wgsl": "wgpu"}


@pytest.fixture(autouse=True, scope="session")
def _player():
    for name, missing in (player(), webgpu()):
        assert name, f"these tests run shaders, but {missing}: apt-get install ffmpeg mesa-vulkan-drivers"


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(one.astype(np.float64) - other).mean()))


def shown(net: nn.Module, x: torch.Tensor) -> np.ndarray:
    """What a player should show."""
    with torch.inference_mode():
        return net(x).clamp(0, 1).numpy()


@pytest.mark.parametrize("suffix", ENGINES)
@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_every_shipped_network(name, suffix, tmp_path):
    report = export(create_model(name, pretrained=True), tmp_path / f"net{suffix}")
    assert report.psnr_db > 66 and len(report.shapes) == 3 and ENGINES[suffix] in report.engine


NETWORKS = {
    "5x5, dilation, channels that fill no four": lambda: nn.Sequential(
        conv(3, 5, 5), nn.PReLU(5), conv(5, 3, dilation=2)
    ),
    "groups and depthwise": lambda: nn.Sequential(
        conv(1, 8), conv(8, 8, groups=8), conv(8, 6, groups=2), conv(6, 1, 1)
    ),
    "residuals, two branches": lambda: Of(
        lambda x, a, b, c, d: d(torch.cat([b(F.relu(a(x))), c(a(x))[:, 1:]], 1)) + x,
        *(conv(3, 6), conv(6, 6), conv(6, 7), conv(12, 3)),
    ),
    "one channel for many, largest and smallest": lambda: Of(
        lambda x, a, b, c: c(torch.maximum(a(x), torch.minimum(b(x), a(x) * 0.5)) * torch.sigmoid(a(x)[:, :1])),
        *(conv(1, 5), conv(1, 5), conv(5, 1)),
    ),
    "functions": lambda: Of(
        lambda x, a, b: (
            b(sum(f(a(x)) for f in (torch.tanh, F.silu, F.hardswish, F.softplus, F.elu, torch.sin, torch.abs))) * 0.1
        ),
        *(conv(1, 4), conv(4, 1)),
    ),
    "added after the shuffle, cut": lambda: Of(
        lambda x, a: (F.pixel_shuffle(a(x), 3) + F.interpolate(x, scale_factor=3)).clamp(0.1, 0.9), conv(3, 27)
    ),
    "layers after a shuffle": lambda: Of(
        lambda x, a, b, c: (
            c(F.relu(F.pixel_shuffle(b(F.pixel_shuffle(F.relu(a(x)), 2)), 2))) + F.interpolate(x, scale_factor=4)
        ),
        *(conv(1, 20), conv(5, 12), conv(3, 1)),
    ),
    "base of areas": lambda: made("plain_m1c4_x3_y", base="bilinear", act="softplus"),
    "mean off the colors": lambda: made("edsr_m1c4_x2"),
    "two shuffles": lambda: made("sesr_m3_x4"),
    "no layer": lambda: Of(lambda x: 1 - x),
}


@pytest.mark.parametrize("suffix", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_step(name, suffix, tmp_path):
    net = NETWORKS[name]().eval()
    colors = next((layer.in_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)), 3)
    report = export(net, tmp_path / f"net{suffix}", example=picture(colors, 8, 9))
    assert report.psnr_db > 65


@pytest.mark.parametrize("size", [(1, 1), (8, 1), (2, 16)])
def test_tiny_images_are_all_border(size, tmp_path):
    net = made("plain_m2c4_x2_y")
    x = picture(1, *size)
    for suffix in ENGINES:
        export(net, tmp_path / f"net{suffix}")
    for run in (run_player(tmp_path / "net.glsl", 2), run_webgpu(tmp_path / "net.wgsl")):
        assert psnr_db(run(x.numpy()).clip(0, 1), shown(net, x)) > 60


def played(file, planes: bytes, size: str, larger: str, options: str = "") -> list[np.ndarray]:
    """The planes of a frame of usual video, 4:2:0 in 8 bits and limited range, after the filter."""
    width, height = map(int, larger.split("x"))
    video = ["-f", "rawvideo", "-pix_fmt", "yuv420p"]
    filters = f"setparams=range=tv:colorspace=bt709,hwupload,libplacebo=w={width}:h={height}:format=yuv420p{options}"
    done = subprocess.run(
        [
            *("ffmpeg", "-v", "error", "-init_hw_device", "vulkan", *video, "-s", size, "-i", "-"),
            *("-vf", f"{filters}:custom_shader_path={file.name},hwdownload,format=yuv420p", *video, "-"),
        ],
        input=planes,
        capture_output=True,
        check=True,
        cwd=file.parent,
    )
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    ends = np.cumsum([0, *(rows * columns for rows, columns in shapes)])
    frame = np.frombuffer(done.stdout, np.uint8)
    assert len(frame) == ends[-1]
    return [frame[one:end].reshape(shape) for one, end, shape in zip(ends, ends[1:], shapes)]


@pytest.fixture(scope="module")
def luma(tmp_path_factory):
    """A network of luma, its shader, and a frame 18 high and 34 wide: luma, and one chroma that changes at a line."""
    net, file = made("plain_m2c8_x2_y"), tmp_path_factory.mktemp("luma") / "net.glsl"
    export(net, file)
    y = (16 + 219 * picture(1, 18, 34)).round().byte()
    chroma = np.full((2, 9, 17), 128, np.uint8)
    chroma[0, :, 8:] = 140
    return net, file, y, y.numpy().tobytes() + chroma.tobytes()


@pytest.fixture(scope="module")
def nothing(luma):
    """A shader that never runs."""
    file = luma[1].with_name("nothing.glsl")
    file.write_text("//!HOOK LUMA\n//!BIND HOOKED\n//!WHEN 0\nvec4 hook() { return HOOKED_texOff(0); }\n")
    return file


def test_luma_of_limited_range_is_taken_as_it_is(luma):
    net, file, y, frame = luma
    wanted = shown(net, y / 255)[0, 0] * 255
    inside = (wanted > 16) & (wanted < 235)  # a player may cut what no video has
    assert inside.mean() > 0.9
    assert np.abs(played(file, frame, "34x18", "68x36")[0] - wanted)[inside].max() <= 1.5


def test_chroma_stays_where_it_is(luma, nothing):
    """It is enlarged by the player, which knows where its samples lie, with the shader and without."""
    _, file, _, frame = luma
    edges = []
    for one in (file, nothing):
        blue = played(one, frame, "34x18", "68x36")[1].mean(0)
        edges.append(((blue - blue.min()) / (blue.max() - blue.min())).sum())  # columns after the edge
    assert abs(edges[0] - edges[1]) < 0.1


@pytest.mark.parametrize(("larger", "runs"), [("34x18", False), ("40x20", False), ("44x24", True)])
def test_it_runs_only_when_the_picture_is_enlarged(larger, runs, luma, nothing):
    _, file, _, frame = luma
    one, other = (played(path, frame, "34x18", larger)[0] for path in (file, nothing))
    assert (one != other).any() == runs
