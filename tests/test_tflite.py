"""Networks as files of TFLite: the same numbers at any size, in few operators, or refused."""

from __future__ import annotations

import copy
import json
from collections import Counter
from functools import partial
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from helpers import made, randomise
from hypothesis import given, settings
from plain_nets import FUNCTIONS_OF_TORCH, KINDS_OF_STEP, LIBRARY, NETS, Of, conv, nets, picture
from torch import nn
from typer.testing import CliRunner

from reparam import ExportError, SpecError, Upscaler, export, load_checkpoint
from reparam.cli import app
from reparam.deploy import _engines as engines
from reparam.deploy import _exporter as exporter
from reparam.deploy import read_note
from reparam.deploy._notes import about
from reparam.deploy._plain import FUNCTIONS, plain_steps
from reparam.deploy._tflite.emit import graph_of
from reparam.deploy._tflite.graph import packed
from reparam.models._pretrained import network_file
from reparam.sr import list_models

TWICE = partial(F.pixel_shuffle, upscale_factor=2)
SIZES = ((1, 8, 12), (2, 12, 16), (1, 20, 36))


def run(file: bytes, x: np.ndarray) -> np.ndarray:
    """What a user's program does."""
    interpreter = Interpreter(model_content=file)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = x.transpose(0, 2, 3, 1)
    if tuple(source["shape"]) != x.shape:
        interpreter.resize_tensor_input(source["index"], x.shape, strict=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(x))
    interpreter.invoke()
    y = interpreter.get_tensor(target["index"])
    return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y


def written(net: nn.Module, colors: int = 3, dynamic: bool = True, **options) -> tuple[bytes, Counter]:
    graph = graph_of(plain_steps(net, picture(2, colors, 8, 12).float(), dynamic), dynamic, **options)
    return packed(graph, {}), Counter(operator.kind for operator in graph.operators)


def assert_equal_there(net: nn.Module, colors: int = 3, sizes=SIZES, dynamic: bool = True, **options) -> Counter:
    net = copy.deepcopy(net).float().eval()
    file, kinds = written(net, colors, dynamic, **options)
    for batch, *size in sizes if dynamic else [(2, 8, 12)]:
        x = picture(batch, colors, *size, seed=1).float()
        with torch.inference_mode():
            y = net(x.clone()).numpy()
        got = run(file, x.numpy())
        assert got.shape == y.shape and np.abs(got - y).max() <= 1e-5 * np.abs(y).max(), size
    return kinds


# Networks


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_networks_with_weights(name):
    net = load_checkpoint(network_file(name, fused=True))
    awkward = ((1, 1, 1), (1, 3, 5), (2, 8, 9), (1, 17, 4), (1, 4, 33))
    kinds = assert_equal_there(net, net.colors, awkward)
    few = {
        "CONV_2D": net.num_blocks + 2,
        "PRELU": net.num_blocks + 1,
        "CONCATENATION": 1,
        "ADD": 1,
        "DEPTH_TO_SPACE": 1,
    }
    assert kinds == few
    as_conv = assert_equal_there(net, net.colors, awkward, shuffle_as_conv=True)
    del few["DEPTH_TO_SPACE"]
    assert as_conv == {**few, "ADD": 2, "TRANSPOSE_CONV": 1, "SHAPE": 1, "MUL": 1}
    fixed = assert_equal_there(net, net.colors, dynamic=False, shuffle_as_conv=True)
    assert fixed == {**few, "TRANSPOSE_CONV": 1}


@pytest.mark.parametrize(("name", "options"), LIBRARY)
def test_every_kind_of_network_of_this_library(name, options):
    net = made(name, **options)
    assert_equal_there(net, net.colors)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_networks_of_others(name, dynamic):
    net = randomise(NETS[name](), 0)
    assert_equal_there(net, dynamic=dynamic)
    assert_equal_there(net, dynamic=dynamic, shuffle_as_conv=True)


NO_OPERATOR = {
    "resize-2": "bicubic interpolation",
    "average-1": r"means of \(2, 1\) pixels .* not count the padding \(1, 0\)",
}


@pytest.mark.parametrize(
    ("name", "net"), [(f"{kind}-{i}", net) for kind, nets in KINDS_OF_STEP.items() for i, net in enumerate(nets)]
)
def test_a_kind_of_step(name, net):
    if name in NO_OPERATOR:
        with pytest.raises(ExportError, match=f"computes {NO_OPERATOR[name]}.*, which no operator of TFLite does"):
            assert_equal_there(net)
    else:
        assert_equal_there(net)
        assert_equal_there(net, dynamic=False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    function = FUNCTIONS_OF_TORCH[name]
    assert_equal_there(Of(lambda x: function(x + 0.1) if name in ("log", "sqrt") else function(8 * x - 4)))


def test_channels_are_ordered_inside_of_the_weights():
    """Where there is a convolution beside the shuffle; else a gather stays."""
    few = {
        lambda x, a, b: TWICE((a(x) + b(x)).relu().mul(2)): {"CONV_2D": 2, "ADD": 1, "MUL": 1},
        lambda x, a, b: TWICE(a(x) + x.repeat(1, 4, 1, 1)): {"CONV_2D": 1, "GATHER": 1, "ADD": 1},
        lambda x, a, b: TWICE(a(x) * b(x).mean((2, 3), True)): {"CONV_2D": 2, "MEAN": 1, "MUL": 1},
        lambda x, a, b: TWICE(a(x) * b(x)[:, :1]): {"CONV_2D": 2, "MUL": 1},
        lambda x, a, b: TWICE(F.avg_pool2d(a(x), 2)): {"CONV_2D": 1, "AVERAGE_POOL_2D": 1},
        lambda x, a, b: TWICE(x.repeat(1, 4, 1, 1)): {"GATHER": 1},
        lambda x, a, b: TWICE(a(x)) + TWICE(a(x).sin()): {"CONV_2D": 2, "SIN": 1, "ADD": 1},
    }
    for function, kinds in few.items():
        assert assert_equal_there(Of(function, conv(3, 12), conv(3, 12))) == {**kinds, "DEPTH_TO_SPACE": 1}
    into = nn.Sequential(nn.PixelUnshuffle(2), conv(12, 4))
    assert assert_equal_there(into) == {"SPACE_TO_DEPTH": 1, "CONV_2D": 1}
    grouped = nn.Sequential(nn.PixelUnshuffle(2), conv(12, 12, groups=12), nn.PixelShuffle(2))
    kinds = {"SPACE_TO_DEPTH": 1, "GATHER": 2, "DEPTHWISE_CONV_2D": 1, "DEPTH_TO_SPACE": 1}
    assert assert_equal_there(grouped) == kinds


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (nn.ReLU(), {}),
        (nn.ReLU6(), {}),
        (nn.Hardtanh(), {}),
        (nn.Hardtanh(0, 1), {"MAXIMUM": 1, "MINIMUM": 1}),
        (Of(lambda x: x.clamp(min=0.2)), {"MAXIMUM": 1}),
        (nn.LeakyReLU(), {"LEAKY_RELU": 1}),
        (Of(lambda x: x.relu() + x), {"RELU": 1, "ADD": 1}),  # which the sum needs without
    ],
)
def test_activations_at_the_end_of_an_operator(layer, kinds):
    assert assert_equal_there(nn.Sequential(conv(3, 4), layer)) == {"CONV_2D": 1, **kinds}


def test_borders_that_tflite_puts_elsewhere():
    for stride, padding, kernel, more in (
        (1, 1, 3, {}),
        (2, 1, 3, {"PAD": 1}),
        (2, 0, 3, {}),
        (1, 2, 3, {"PAD": 1}),
        (1, 0, 1, {}),
        (1, 1, 4, {"PAD": 1}),
        ((2, 1), (0, 1), 3, {"PAD": 1}),
    ):
        layer = nn.Conv2d(3, 4, kernel, stride, padding)
        assert assert_equal_there(layer, sizes=((1, 7, 9), (2, 8, 8), (1, 9, 6))) == {"CONV_2D": 1, **more}


# Files


def model_of(file: Path) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(file.read_bytes())


def test_the_file_says_what_it_is(tmp_path):
    file, net = tmp_path / "net.tflite", made("repsr_m1c4_x2")
    report = export(net, file)
    assert report.engine == "litert" and report.error < 1e-5 and report.files == (file,)
    assert report.shapes == ((1, 3, 1, 1), (1, 3, 3, 5), (2, 3, 8, 9), (1, 3, 17, 4), (1, 3, 4, 33))
    interpreter = Interpreter(model_path=str(file))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["name"], target["name"]) == ("input", "output")
    assert source["shape_signature"].tolist() == target["shape_signature"].tolist() == [-1, -1, -1, 3]
    runner = interpreter.get_signature_runner("serving_default")
    x = picture(1, 3, 8, 9).float()
    with torch.no_grad():
        wanted = net(x).permute(0, 2, 3, 1)
    got = runner(input=x.permute(0, 2, 3, 1).numpy())["output"]
    assert np.allclose(got, wanted, atol=1e-5)
    note = read_note(file)
    assert note["scale"] == "2" and note["colors"] == "3" and note["radius"] == "3" and note["order"] == "RGB"
    assert json.loads(note["reparam"])["network"] == "RepSR"
    assert file.read_bytes()[4:8] == b"TFL3"


def test_a_file_without_a_note(tmp_path):
    (tmp_path / "net.tflite").write_bytes(written(made("plain_m1c4_x2"))[0])
    model = model_of(tmp_path / "net.tflite")
    model.metadata = None
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "bare.tflite").write_bytes(bytes(builder.Output()))
    assert read_note(tmp_path / "bare.tflite") == {}
    assert Upscaler(tmp_path / "bare.tflite").scale == 2


def test_numbers_lie_where_processors_read_them_fast(tmp_path):
    export(made("plain_m1c4_x2"), tmp_path / "net.tflite")
    file = (tmp_path / "net.tflite").read_bytes()
    model = schema.Model.GetRootAs(file)
    held = [model.Buffers(place) for place in range(model.BuffersLength())]
    starts = [file.find(one.DataAsNumpy().tobytes()) for one in held if one.DataLength() > 8]
    assert len(starts) > 6 and all(start % 16 == 0 for start in starts)


@pytest.mark.parametrize("dynamic", [True, "batch", False])
def test_sizes_that_are_free(dynamic, tmp_path):
    file, net = (
        tmp_path / "net.tflite",
        nn.Sequential(conv(3, 4), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 3, 2, 2)),
    )
    report = export(net.eval(), file, example=torch.rand(2, 3, 8, 9), dynamic=dynamic)
    shapes = {True: 3, "batch": 2, False: 1}
    assert len(report.shapes) == shapes[dynamic]
    signature = Interpreter(model_path=str(file)).get_input_details()[0]["shape_signature"].tolist()
    assert signature == {True: [-1, -1, -1, 3], "batch": [-1, 8, 9, 3], False: [2, 8, 9, 3]}[dynamic]
    assert about(file).shape == {True: (None, 3, None, None), "batch": (None, 3, 8, 9), False: (2, 3, 8, 9)}[dynamic]


def test_weights_in_half(tmp_path):
    net = load_checkpoint(network_file("repsr_m4c16_x2", fused=True))
    report = export(net, tmp_path / "half.tflite", half=True)
    export(net, tmp_path / "net.tflite")
    assert report.error < 2e-3 and report.error > 1e-5
    half, full = (model_of(tmp_path / f"{name}.tflite") for name in ("half", "net"))
    kinds = Counter(half.operatorCodes[one.opcodeIndex].builtinCode for one in half.subgraphs[0].operators)
    assert kinds[schema.BuiltinOperator.DEQUANTIZE] == 6 * 2 + 5
    stored = {one.type for one in half.subgraphs[0].tensors if half.buffers[one.buffer].data is not None}
    assert stored == {schema.TensorType.FLOAT16}
    halved, whole = (sum(len(one.data) for one in model.buffers[:-1] if one.data is not None) for model in (half, full))
    assert 2 * halved == whole
    assert (tmp_path / "half.tflite").stat().st_size < 0.6 * (tmp_path / "net.tflite").stat().st_size


# What goes wrong


def test_nothing_is_written_of_what_tflite_cannot_say(tmp_path):
    file = tmp_path / "net.tflite"
    file.write_bytes(b"old")
    x = torch.rand(2, 3, 8, 12)
    for net, message in (
        (nn.Upsample(scale_factor=2, mode="bicubic"), "the network computes bicubic interpolation, which no operator"),
        (nn.Sequential(conv(3, 3), nn.Softmax(1)), "1 computes _softmax of"),
        (
            nn.Sequential(conv(3, 3), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
            r"1 computes means of \(3, 3\) pixels",
        ),
        (Of(lambda x: x[:, :, : x.shape[2] // 2]), "computes crop from the size or the values of the image"),
    ):
        with pytest.raises(ExportError, match=message):
            export(net.eval(), file, example=x)
    with pytest.raises(
        SpecError, match=r"shuffle_as_conv=True is an option of .tflite, but the format is ONNX \(.onnx\)"
    ):
        export(made("plain_m1c4_x2"), tmp_path / "net.onnx", shuffle_as_conv=True)
    with pytest.raises(SpecError, match=r"opset=17 is an option of .onnx, but the format is TFLite \(.tflite\)"):
        export(made("plain_m1c4_x2"), file, opset=17)
    assert [path.name for path in tmp_path.iterdir()] == ["net.tflite"] and file.read_bytes() == b"old"


def test_an_enlarging_by_no_whole_number_where_sizes_are_free():
    net = nn.Upsample(scale_factor=1.5, mode="bilinear")
    with pytest.raises(ExportError, match=r"an upsampling by \(1.5, 1.5\) with free sizes"):
        assert_equal_there(net)
    assert assert_equal_there(net, dynamic=False) == {"RESIZE_BILINEAR": 1}


def test_a_network_that_computes_nothing():
    assert assert_equal_there(nn.Identity()) == {"ADD": 1}
    assert assert_equal_there(nn.Sequential(conv(3, 3), nn.ZeroPad2d(0))) == {"CONV_2D": 1, "PAD": 1}


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"TFLite needs ai_edge_litert: pip install 'reparam\[litert\]'"):
        export(made("plain_m1c4_x2"), tmp_path / "net.tflite")
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "ai_edge_litert" else True)
    with pytest.raises(
        SpecError, match=r"the engine 'litert' needs .* ai_edge_litert: pip install 'reparam\[litert\]'"
    ):
        Upscaler(made("plain_m1c4_x2"), engine="litert")


def test_the_command(tmp_path):
    file = tmp_path / "net.tflite"
    done = CliRunner().invoke(app, ["export", "repsr_m4c16_x2", str(file), "--half", "--shuffle-as-conv"])
    assert done.exit_code == 0, done.output
    model = model_of(file)
    kinds = {one.builtinCode for one in model.operatorCodes}
    assert schema.BuiltinOperator.TRANSPOSE_CONV in kinds and schema.BuiltinOperator.DEPTH_TO_SPACE not in kinds


@settings(max_examples=40)
@given(nets())
def test_networks_drawn(net):
    assert_equal_there(net, sizes=((1, 32, 48), (2, 64, 48)))
