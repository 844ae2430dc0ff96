"""Networks in float16: nothing in them passes its largest number, and what was rescaled is the same function."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import made
from torch import nn
from typer.testing import CliRunner

from reparam import ExportError, SpecError, create_model, export, fuse, save_checkpoint
from reparam.cli import app
from reparam.deploy import _exporter as exporter
from reparam.deploy._half import LARGEST, held_in_half, smooth_pictures
from reparam.deploy._runners import run_onnxruntime, run_openvino, run_reference

PICTURES = smooth_pictures(3)


def conv(inputs: int, outputs: int, gain: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class Joined(nn.Module):
    """What ties values together: a sum over three layers, channels side by side, a factor for all, a shuffle."""

    scale, colors = 2, 3

    def __init__(self, gain: float = 1e6):
        super().__init__()
        self.first, self.act = conv(3, 8, gain), nn.PReLU(8)
        self.middle, self.other = conv(8, 8, gain), conv(8, 8, 0.1)
        self.last = conv(16, 12, gain**-2)

    def forward(self, x):
        a = self.act(self.first(x))
        b = nn.functional.leaky_relu(self.middle(a))
        c = b + self.other(b.relu_()) * 0.2
        return nn.functional.pixel_shuffle(self.last(torch.cat([c, b], 1)), 2)


@pytest.fixture
def large() -> nn.Module:
    torch.manual_seed(0)
    return Joined().eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_rescaled_is_the_same_to_the_last_bit(large, dtype):
    net, pictures = large.to(dtype), PICTURES.to(dtype)
    held = held_in_half(net, [pictures])
    assert held.rescaled == ("first", "middle", "other", "last") and held.peak <= LARGEST / 16
    assert torch.equal(held.net(pictures), net(pictures)) and held.net is not net
    inside = [net.middle(net.act(net.first(pictures))), held.net.middle(held.net.act(held.net.first(pictures)))]
    assert inside[0].abs().max() > 1e6 * LARGEST and inside[1].abs().max() < LARGEST / 16
    assert torch.log2(net.first.weight / held.net.first.weight).unique().numel() == 1


def test_what_is_small_stays_as_it_is():
    net = made("plain_m2c8_x2")
    held = held_in_half(net, [PICTURES])
    assert held.net is net and held.rescaled == () and 0.1 < held.peak < 100


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Sequential(conv(3, 4, 1e7), nn.Softplus(), conv(4, 3, 1e-7)), r"Sequential.[01] reaches [0-9.e+]+, but"),
        (nn.Sequential(conv(3, 4, 1e7), nn.Hardtanh(-1, 1), conv(4, 3)), r"Sequential.0 reaches [0-9.e+]+, but"),
        (
            nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 3, 1e7)),
            r"Sequential.2 reaches [0-9.e+]+, but .* at most 65504",
        ),
        (nn.Sequential(conv(3, 4, 1e7), nn.Softmax(1), conv(4, 3)), r"Sequential.0 reaches [0-9.e+]+, but"),
        (nn.Sequential(nn.BatchNorm2d(3).eval()), r"0.weight holds 1e\+06, but float16 holds at most 65504"),
    ],
    ids=["function", "clamp", "output", "unknown step", "parameter"],
)
def test_what_float16_cannot_hold_is_refused(net, match, tmp_path):
    if isinstance(net[0], nn.BatchNorm2d):
        net[0].weight.data.fill_(1e6)
        net[0].running_var.fill_(1e12)
        with pytest.raises(ExportError, match=match):
            held_in_half(net, [PICTURES])
        return
    with pytest.raises(ExportError, match=match):
        export(net.eval(), tmp_path / "net.onnx", example=PICTURES, half=True)
    assert not list(tmp_path.iterdir())


def test_a_shared_convolution_is_not_rescaled_twice():
    shared = conv(8, 8)
    net = nn.Sequential(conv(3, 8, 1e7), nn.ReLU(), conv(8, 8, 1e-7), shared, nn.ReLU(), shared, conv(8, 3))
    net.eval().requires_grad_(False)
    held = held_in_half(net, [PICTURES])
    assert torch.equal(held.net(PICTURES), net(PICTURES)) and held.rescaled == ("0", "2")
    net[1] = shared  # between two convolutions of large numbers nothing could be undone
    with pytest.raises(ExportError, match=r"Sequential.0 reaches [0-9.e+]+, but"):
        held_in_half(net, [PICTURES])


@pytest.mark.parametrize("name", ["repsr_m4c16_x2", "repsr_m4c16_x2_y"])
def test_a_file_in_float16(name, tmp_path):
    net = create_model(name, pretrained=True).eval()
    report = export(net, tmp_path / "net.onnx", half=True)
    assert 1e-5 < report.error < report.bound == 4e-3 and report.peak < 1000 and report.rescaled == ()
    assert f"in float16, differs by {report.error:.0e} in onnxruntime (5 shapes) (allowed: 4e-03)" in str(report)
    model = onnx.load(tmp_path / "net.onnx")
    half = onnx.TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {half}
    assert {tensor.data_type for tensor in model.graph.initializer} == {half, onnx.TensorProto.INT64}  # of Gather
    assert "Cast" not in {node.op_type for node in model.graph.node}
    x = torch.rand(1, net.colors, 9, 14)
    wanted = net(x).detach().numpy()
    for run in (run_onnxruntime, run_reference, run_openvino):
        y = run(tmp_path / "net.onnx")(x.numpy())
        assert y.dtype == np.float32 and 1e-5 < np.abs(y - wanted).max() / np.abs(wanted).max() < 4e-3, run
    raw = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x.numpy().astype(np.float16)})[0]
    assert raw.dtype == np.float16


def test_large_numbers_inside_are_written_small(large, tmp_path):
    report = export(large, tmp_path / "net.onnx", half=True)
    assert report.rescaled == ("first", "middle", "other", "last") and report.peak <= LARGEST / 16
    assert "after rescaling first, middle, other, last" in str(report)
    x = PICTURES.numpy()
    wanted = large(PICTURES).numpy()
    y = run_reference(tmp_path / "net.onnx")(x)  # which computes every step in float16
    assert np.isfinite(y).all() and np.abs(y - wanted).max() < 4e-3 * np.abs(wanted).max()
    with torch.no_grad():
        assert not large.half()(PICTURES.half()).isfinite().all()


def test_inference_mode_changes_nothing(large, tmp_path):
    with torch.inference_mode():  # in which torch takes convolutions apart otherwise
        assert export(large, tmp_path / "net.onnx", half=True).rescaled == ("first", "middle", "other", "last")
        assert torch.is_inference_mode_enabled()


def test_more_than_float16_rounds_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "held_in_half", lambda net, images: held_in_half(made("plain_m1c4_x2"), images))
    net = made("plain_m1c4_x2")
    net.body[-1].weight.data *= 1.5
    with pytest.raises(
        ExportError, match=r"onnxruntime differs by [0-9.e-]+ of .*, but rounding explains at most 4e-03"
    ):
        export(net, tmp_path / "net.onnx", half=True)
    assert not list(tmp_path.iterdir())


def test_the_example_is_what_is_measured(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    small = export(net, tmp_path / "net.onnx", example=torch.rand(1, 1, 8, 8), half=True).peak
    assert export(net, tmp_path / "net.onnx", example=100 * torch.rand(1, 1, 8, 8), half=True).peak > 10 * small


@pytest.mark.parametrize("suffix", [".pt2", ".xml", ".ncnn.param"])
@pytest.mark.parametrize(("option", "told"), [({"half": True}, "half=True"), ({"opset": 11}, "opset=11")])
def test_options_of_another_format_are_refused(suffix, option, told, tmp_path):
    with pytest.raises(SpecError, match=rf"{told} is an option of \.onnx.*, but the format is .* \({suffix}\)"):
        export(made("plain_m1c4_x2"), tmp_path / f"net{suffix}", **option)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
    save_checkpoint(fuse(made("repsr_m1c4_x2")), tmp_path / "net.safetensors")
    command = ["export", str(tmp_path / "net.safetensors"), str(tmp_path / "net.onnx"), "--half", "--opset", "13"]
    result = CliRunner().invoke(app, [*command, "--json"])
    report = json.loads(result.output)
    assert report["bound"] == 4e-3 and 0 < report["peak"] < 1000
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 13
