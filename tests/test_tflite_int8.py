"""Networks of TFLite in 8 bits: every operator, what its integers stand for, and what goes in and comes out."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from helpers import randomise
from PIL import Image
from plain_nets import FUNCTIONS_OF_TORCH, KINDS_OF_STEP, NETS, Of, conv, picture
from torch import nn
from typer.testing import CliRunner

from reparam import Upscaler, load_checkpoint
from reparam.cli import app
from reparam.deploy import read_note
from reparam.deploy._plain import FUNCTIONS, plain_steps
from reparam.deploy._tflite.calibrate import ranges_of
from reparam.deploy._tflite.emit import graph_of
from reparam.deploy._tflite.graph import Graph, packed
from reparam.deploy._tflite.int8 import in_int8
from reparam.deploy._tflite.run import run_litert
from reparam.deploy._tflite.write import write_int8_tflite
from reparam.models._pretrained import network_file

REFERENCE = OpResolverType.BUILTIN_REF
"""TFLite's own kernels as they were written first: each knows the first versions of its operator."""


def rounded(net: nn.Module, image: torch.Tensor, **options) -> tuple[Graph, float]:
    """The graph, and the largest step between two integers anywhere."""
    graph = graph_of(plain_steps(net, torch.cat([image, image])), True)
    ranges = {**ranges_of(graph, [image.numpy()]), "input": (0.0, 1.0)}
    return in_int8(graph, ranges, **options), max(max(high, 0) - min(low, 0) for low, high in ranges.values()) / 255


def run(file: bytes, x: np.ndarray, resolver: OpResolverType = OpResolverType.AUTO) -> np.ndarray:
    """In the numbers that the integers of the file stand for, as a program of a user's works them out."""
    interpreter = Interpreter(model_content=file, experimental_op_resolver_type=resolver)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = x.transpose(0, 2, 3, 1)
    if source["dtype"] != np.float32:
        scale, zero = source["quantization"]
        x = np.rint(x / scale + zero).astype(source["dtype"])
    interpreter.resize_tensor_input(source["index"], x.shape, strict=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(x))
    interpreter.invoke()
    y = interpreter.get_tensor(target["index"])
    if target["dtype"] != np.float32:
        scale, zero = target["quantization"]
        y = (y.astype(np.float32) - zero) * scale
    return y.transpose(0, 3, 1, 2) if y.ndim == 4 else y


def photo(channels: int = 3, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """Of 8 bits."""
    return (picture(1, channels, *size).float() * 255).round() / 255


def assert_near(net: nn.Module, steps: float = 3, **options) -> Counter:
    """Within some steps of the coarsest integers in the network; gives the operators."""
    net, image = copy.deepcopy(net).float().eval(), photo()
    graph, step = rounded(net, image, **options)
    with torch.inference_mode():
        y = net(image.clone()).numpy()
    kinds = Counter(operator.kind for operator in graph.operators)
    # which knows no ELU, and depthwise weights of 8 bits only
    unknown = "ELU" in kinds or ("DEPTHWISE_CONV_2D" in kinds and options.get("bits") == 4)
    for resolver in (OpResolverType.AUTO, *(() if unknown else (REFERENCE,))):
        got = run(packed(graph, {}), image.numpy(), resolver)
        assert got.shape == y.shape and np.abs(got - y).max() <= steps * step, (resolver, np.abs(got - y).max() / step)
    return kinds


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize(
    ("kind", "net"),
    [
        pytest.param(kind, net, id=f"{kind}-{i}")
        for kind, nets in KINDS_OF_STEP.items()
        for i, net in enumerate(nets)
        if (kind, i) not in (("resize", 2), ("average", 1))
    ],
)
def test_a_kind_of_step(kind, net, io):
    assert_near(net, io=io)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    function = FUNCTIONS_OF_TORCH[name]
    assert_near(Of(lambda x: function(x + 0.1) if name in ("log", "sqrt") else function(8 * x - 4)), io="int8")


@pytest.mark.parametrize("io", ["float32", "uint8"])
@pytest.mark.parametrize("name", NETS)
def test_networks_of_others(name, io):
    assert_near(randomise(NETS[name](), 0), 12, io=io)


# Scales that operators share


def follow(layer: nn.Module) -> nn.Module:
    """So that nothing before it stays in float32."""
    return nn.Sequential(layer, conv(layer(torch.rand(1, 3, 8, 8)).shape[1], 2))


MEETINGS = {
    "an image with itself": (lambda x: torch.cat([x, x, x], 1), {"CONCATENATION": 1, "QUANTIZE": 1}),
    "the input with another": (
        lambda x: torch.cat([x, 5 * x], 1),
        {"MUL": 1, "CONCATENATION": 1, "QUANTIZE": 2},
    ),
    "three that are firm": (
        lambda x: torch.cat([x.sigmoid(), x.tanh(), x.flip(1)], 1),
        {"LOGISTIC": 1, "TANH": 1, "GATHER": 1, "CONCATENATION": 1, "QUANTIZE": 4},
    ),
    "numbers beside an image": (
        lambda x: torch.cat([2 * x, 3 * x], 1).clamp(0.1, 0.7),
        {"MUL": 2, "CONCATENATION": 1, "MAXIMUM": 1, "MINIMUM": 1, "QUANTIZE": 1},
    ),
    "one that is firm, pooled": (
        lambda x: F.max_pool2d(torch.maximum(x.sigmoid(), 3 * x), 3, 1, 1),
        {"MUL": 1, "LOGISTIC": 1, "MAXIMUM": 1, "MAX_POOL_2D": 1, "QUANTIZE": 2},
    ),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_integers_of_two_scales_meet(name):
    function, kinds = MEETINGS[name]
    assert assert_near(follow(Of(function))) == {**kinds, "CONV_2D": 1, "DEQUANTIZE": 1}
    assert_near(Of(function), io="int8")


def test_an_output_of_one_scale_only():
    for function in (torch.sigmoid, lambda x: torch.tanh(x).flip(1), lambda x: x.flip(1)):
        assert assert_near(Of(function), io="int8")["QUANTIZE"] == 1
    assert assert_near(Of(lambda x: x * 1.0), io="int8")["QUANTIZE"] == 0


def test_channels_that_are_always_zero():
    assert_near(nn.Sequential(conv(3, 4), Of(lambda x: (x - 1e3).relu()), conv(4, 2)), io="int8")
    silent = conv(3, 4)
    silent.weight.data[1] = 0
    silent.bias.data[1] = 1e3
    assert_near(nn.Sequential(silent, conv(4, 2)))


def test_what_no_operator_does_in_integers_is_done_in_between():
    kinds = assert_near(nn.Sequential(conv(3, 4), Of(lambda x: x.sin() + x), conv(4, 2)))
    assert kinds == {"CONV_2D": 2, "SIN": 1, "ADD": 1, "QUANTIZE": 2, "DEQUANTIZE": 2}


# What the integers stand for


NAME = "repsr_m4c16_x2"


def integers_of(data: np.ndarray, bits: int) -> np.ndarray:
    """The integers of weights in a file: one to a byte, or, of 4 bits, two."""
    if bits > 4:
        return np.frombuffer(data, np.int8)
    halves = np.array([half for byte in data for half in (byte % 16, byte // 16)], int)
    return np.where(halves > 7, halves - 16, halves)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [4, 7, 8])
def test_all_of_a_network_is_in_integers(per_channel, bits, tmp_path):
    net = load_checkpoint(network_file(NAME, fused=True))
    write_int8_tflite(net, tmp_path / "net.tflite", {}, [photo().numpy()], per_channel, bits, "int8")
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "net.tflite").read_bytes())
    (main,) = model.subgraphs
    kinds = [model.operatorCodes[one.opcodeIndex].builtinCode for one in main.operators]
    named = {"CONV_2D": 6, "PRELU": 5, "CONCATENATION": 1, "ADD": 1, "DEPTH_TO_SPACE": 1}
    assert Counter(kinds) == {getattr(schema.BuiltinOperator, name): times for name, times in named.items()}
    small = {schema.TensorType.INT4} if bits == 4 else set()
    assert {tensor.type for tensor in main.tensors} == {schema.TensorType.INT8, schema.TensorType.INT32} | small
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    assert versions[schema.BuiltinOperator.CONV_2D] == (7 if bits == 4 else 3)
    convs = [one for one, kind in zip(main.operators, kinds) if kind == schema.BuiltinOperator.CONV_2D]
    for operator, conv2d in zip(convs, [one for one in net.body if isinstance(one, nn.Conv2d)]):
        x, weight, bias = (main.tensors[index].quantization for index in operator.inputs)
        numbers = integers_of(model.buffers[main.tensors[operator.inputs[1]].buffer].data, bits)
        assert numbers.size == conv2d.weight.numel()
        assert np.abs(numbers).max() == 2 ** (bits - 1) - 1
        assert list(weight.zeroPoint) == [0] * len(weight.scale) and list(bias.zeroPoint) == [0] * len(bias.scale)
        assert len(weight.scale) == (len(conv2d.bias) if per_channel else 1) and weight.quantizedDimension == 0
        assert np.allclose(bias.scale, x.scale[0] * np.asarray(weight.scale), rtol=1e-6)
    ends = [main.tensors[index].quantization for index in (*main.inputs, *main.outputs)]
    assert [(one.scale[0], one.zeroPoint[0]) for one in ends] == [(pytest.approx(1 / 255), -128)] * 2


def test_the_weights_are_those_of_the_network():
    net = load_checkpoint(network_file(NAME, fused=True))
    graph, _ = rounded(net, photo())
    convs = [one for one in graph.operators if one.kind == "CONV_2D"]
    layers = [one for one in net.body if isinstance(one, nn.Conv2d)]
    for operator, layer in list(zip(convs, layers))[:-1]:  # the last one's channels are in another order
        weight, bias = (graph.arrays[name] for name in operator.inputs[1:])
        steps = weight.scale.scale.reshape(-1, 1, 1, 1)
        exact = layer.weight.detach().permute(0, 2, 3, 1).numpy()
        assert (np.abs(weight.data * steps - exact) <= 0.5001 * steps).all()
        assert (np.abs(bias.data * bias.scale.scale - layer.bias.detach().numpy()) <= 0.5001 * bias.scale.scale).all()


FEW_BITS = {
    "a convolution": conv(3, 5, kernel=5, stride=2, bias=False),
    "an odd number of weights": nn.Conv2d(3, 1, 3, padding=1),
    "one weight": nn.Sequential(Of(lambda x: x[:, :1]), nn.Conv2d(1, 1, 1)),
    "groups": nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, (3, 1), padding=(1, 0), groups=2)),
    "depthwise": nn.Conv2d(3, 3, 3, padding=1, dilation=2, groups=3),
    "depthwise, two outputs to an input": nn.Conv2d(3, 6, (1, 3), padding=(2, 0), dilation=2, groups=3),
    "activations at the end": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU6(), nn.Conv2d(4, 2, 1)),
    "transposed, which has 8 bits": nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 4, 2)),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", FEW_BITS)
def test_weights_of_4_bits_are_computed_with_as_they_are(name, per_channel):
    net = randomise(copy.deepcopy(FEW_BITS[name]), 0)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        steps = layer.weight.data.abs().amax((1, 2, 3), keepdim=True) / 7
        steps = steps if per_channel else steps.max()
        layer.weight.data = torch.round(layer.weight.data / steps) * steps
    graph, _ = rounded(net.eval(), photo(), per_channel=per_channel, bits=4)
    assert sum(array.nibbles for array in graph.arrays.values()) == len(layers)
    assert_near(net, per_channel=per_channel, bits=4)
    assert_near(net, per_channel=per_channel, bits=4, io="int8")


def test_ranges_are_means_over_the_samples():
    net = nn.Sequential(conv(3, 4), nn.PReLU(4)).eval()
    graph = graph_of(plain_steps(net, torch.rand(2, 3, 8, 8)), True)
    samples = [torch.rand(1, 3, 6, 7), 2 * torch.rand(1, 3, 9, 4)]
    ranges = ranges_of(graph, [x.numpy() for x in samples])
    with torch.no_grad():
        wanted = [(net[0](x), net(x)) for x in samples]
    (inside,) = ranges.keys() - {"input", "output"}
    for name, values in ((inside, [z for z, _ in wanted]), ("output", [y for _, y in wanted]), ("input", samples)):
        ends = [np.mean([float(value.min()) for value in values]), np.mean([float(value.max()) for value in values])]
        assert ranges[name] == pytest.approx(ends, rel=1e-5)


# What goes in and comes out


def test_images_of_8_bits_go_in_and_come_out_as_they_are(tmp_path):
    net = load_checkpoint(network_file(NAME, fused=True))
    image = photo(size=(40, 30))
    write_int8_tflite(net, tmp_path / "net.tflite", {}, [image.numpy()], True, 8, "uint8")
    interpreter = Interpreter(model_path=str(tmp_path / "net.tflite"))
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] == target["dtype"] == np.uint8
    assert source["quantization"] == target["quantization"] == (pytest.approx(1 / 255), 0)
    interpreter.resize_tensor_input(source["index"], (1, 40, 30, 3))
    interpreter.allocate_tensors()
    pixels = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    interpreter.set_tensor(source["index"], pixels)
    interpreter.invoke()
    with torch.inference_mode():
        y = net(image).clip(0, 1).permute(0, 2, 3, 1).numpy() * 255
    error = interpreter.get_tensor(target["index"]).astype(np.float32) - y
    assert np.sqrt(np.square(error).mean()) < 1 and abs(error.mean()) < 0.1


def test_after_the_last_weights_all_is_exact_where_float32_comes_out():
    net = load_checkpoint(network_file(NAME, fused=True))
    graph, _ = rounded(net, photo())
    types = {one.kind: graph.arrays[one.output].dtype for one in graph.operators}
    assert {kind for kind, dtype in types.items() if dtype == np.float32} == {
        "DEQUANTIZE", "CONCATENATION", "ADD", "DEPTH_TO_SPACE"
    }  # fmt: skip
    image = photo()
    with torch.inference_mode():
        y = net(image).numpy()
    errors = [run(packed(rounded(net, image, io=io)[0], {}), image.numpy()) - y for io in ("float32", "int8")]
    exact, rough = (float(np.square(error).mean()) for error in errors)
    assert exact < 0.95 * rough


def test_the_input_goes_in_exactly_and_is_clipped():
    same = Of(lambda x: x * 1.0)
    levels = torch.arange(-20, 276).reshape(1, 1, 8, 37).float().repeat(1, 3, 1, 1) / 255
    graph, _ = rounded(same, levels.clip(0, 1), io="uint8")
    assert np.allclose(run_litert(packed(graph, {}))(levels.numpy()), levels.clip(0, 1), atol=1e-6)


def test_the_command(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = (photo(size=(24, 32))[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    file = tmp_path / "net.tflite"
    command = ["quantize", NAME, str(file), "--images", str(tmp_path / "images"), "--io", "uint8", "--per-tensor"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "weights of 8 bits, one scale per tensor, 1 images" in done.output, done.output
    assert Interpreter(model_path=str(file)).get_input_details()[0]["dtype"] == np.uint8
    assert read_note(file)["scale"] == "2"
    whole = Upscaler(NAME, engine="torch")(pixels)
    error = Upscaler(file, tile=16)(pixels).astype(int) - whole
    assert np.square(error).mean() < 1.5 and np.abs(error).max() < 16
    wrong = CliRunner().invoke(app, [*command[:-2], "uint9", "--overwrite"])
    assert wrong.exit_code == 1 and "io must be 'float32', 'uint8' or 'int8', but got 'uint9'" in wrong.output
