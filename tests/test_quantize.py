"""Networks in 8 bits: which numbers are in the file, what they cost, and who runs them."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from helpers import made
from onnx import numpy_helper
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from typer.testing import CliRunner

from reparam import ECB, ExportError, SpecError, Upscaler, create_model, fuse, quantize
from reparam.cli import app
from reparam.deploy import read_note
from reparam.sr._psnr import psnr_db
from reparam.sr._quantize import integers, quantizer
from reparam.sr._quantize.finetune import finetuned
from reparam.sr._quantize.integers import write_int8
from reparam.sr._quantize.ranges import layer_ranges

NAME = "repsr_m4c16_x2"
LARGE = [np.ascontiguousarray(photo[100:180, 60:180]) for photo in (data.astronaut(), data.coffee())]
SMALL = [np.asarray(Image.fromarray(photo).resize((60, 40), Image.Resampling.BICUBIC)) for photo in LARGE]


@pytest.fixture(scope="module", autouse=True)
def _exported_once():
    """What is rounded is exported first, which takes longer than the rest; the same network gives the same graph."""
    graphs, write_as = {}, integers.write_as

    def once(kind, net, example, dynamic, file):
        numbers = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
        key = kind.write, str(net), dynamic, numbers
        if key not in graphs:
            write_as(kind, net, example, dynamic, file)
            graphs[key] = file.read_bytes()
        file.write_bytes(graphs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integers, "write_as", once)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(scope="module", params=[".onnx", ".xml", ".tflite"])
def written(request, folder):
    file = folder / f"net{request.param}"
    return file, quantize(NAME, file, SMALL, targets=LARGE)


def psnr(image: np.ndarray, original: np.ndarray) -> float:
    return -10 * np.log10(np.square(image.astype(np.float64) - original).mean())


def test_what_it_costs(written):
    file, report = written
    assert report.files[0] == file and all(path.exists() for path in report.files) and report.images == 2
    assert report.engine == {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}[file.suffix]
    assert 40 < report.psnr_db < 60
    assert 0 < report.float_db - report.int8_db < 0.3
    losses = []
    for small, large in zip(*([np.float32(image / 255) for image in images] for images in (SMALL, LARGE))):
        exact, rounded = (Upscaler(one)(small).clip(0, 1) for one in (NAME, file))
        assert 40 < psnr(rounded, exact) < 60
        losses.append(psnr(exact, large) - psnr(rounded, large))
    assert 0 < np.mean(losses) < 0.3  # one photo alone may gain
    assert sorted(path.name for path in file.parent.iterdir() if path.name.startswith(".")) == []


def test_psnr_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    image, original = rng.random((9, 7, 3), dtype=np.float32), rng.random((9, 7, 3), dtype=np.float32)
    for peak in (1.0, 255.0):
        wanted = peak_signal_noise_ratio(original.astype(np.float64), image.astype(np.float64), data_range=peak)
        assert psnr_db(image, original, peak) == pytest.approx(wanted, rel=1e-7)
    assert psnr_db(image, image) == np.inf


def test_the_better_number_of_bits_is_taken(written, folder):
    file, report = written
    each = {bits: quantize(NAME, folder / f"{bits}{file.suffix}", SMALL, weight_bits=bits) for bits in (7, 8)}
    assert report.psnr_db == max(one.psnr_db for one in each.values()) == each[report.weight_bits].psnr_db
    assert [one.weight_bits for one in each.values()] == [7, 8]
    x = np.float32(SMALL[0] / 255)
    assert np.array_equal(Upscaler(file)(x), Upscaler(folder / f"{report.weight_bits}{file.suffix}")(x))


def test_the_figures_are_means_over_the_images(written):
    file, report = written
    pairs = [[Upscaler(one)(np.float32(x / 255)).clip(0, 1) for one in (NAME, file)] for x in SMALL]
    assert report.psnr_db == pytest.approx(np.mean([psnr(rounded, exact) for exact, rounded in pairs]), abs=1e-3)
    for found, which in ((report.float_db, 0), (report.int8_db, 1)):
        wanted = np.mean([psnr(pair[which], np.float32(y / 255)) for pair, y in zip(pairs, LARGE)])
        assert found == pytest.approx(wanted, abs=1e-3)


def test_the_note_is_that_of_export(written):
    note = read_note(written[0])
    assert {key: note[key] for key in ("scale", "colors", "radius")} == {"scale": "2", "colors": "3", "radius": "6"}
    assert json.loads(note["reparam"])["network"] == "RepSR"


def test_onnx_runtime_and_openvino_run_the_same_file(folder):
    file = folder / "both.onnx"
    quantize(NAME, file, SMALL, weight_bits=7)
    one, other = (Upscaler(file, engine=engine)(SMALL[0]).astype(int) for engine in ("onnxruntime", "openvino"))
    assert np.abs(one - other).max() <= 4 and np.abs(one - other).mean() < 0.1
    tiled = Upscaler(file, tile=16)(SMALL[0])
    assert np.array_equal(tiled, Upscaler(file, tile=0)(SMALL[0]))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_weights_in_the_file(per_channel, bits, folder):
    file = folder / f"weights{per_channel}{bits}.onnx"
    quantize(NAME, file, SMALL, per_channel=per_channel, weight_bits=bits)
    plain = fuse(create_model(NAME, pretrained=True))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    weights = [name for name, values in held.items() if name.endswith(".weight_quantized")]
    assert len(weights) == 6 and all(held[name].dtype == np.int8 for name in weights)
    for name, layer in zip(weights, plain.body[::2]):
        scale = held[name.replace("_quantized", "_scale")]
        assert scale.size == (layer.out_channels if per_channel else 1)
        scale = scale.reshape(-1, 1, 1, 1)
        assert np.abs(held[name] * scale - layer.weight.detach().numpy()).max() <= 0.51 * scale.max()
        assert np.abs(held[name]).max() == {7: 64, 8: 127}[bits]


def test_what_is_quantized(written):
    file, _ = written
    if file.suffix == ".onnx":
        graph = onnx.load(file).graph
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        kinds = Counter(node.op_type for node in graph.node)
        assert (kinds["QuantizeLinear"], kinds["Conv"], kinds["PRelu"]) == (12, 6, 5)  # in and out of convolutions
        (node,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input"]
        scale, zero = (held[name] for name in node.input[1:])
        assert scale == pytest.approx(1 / 255) and zero == 0  # nothing is lost of images of 8 bits
    elif file.suffix == ".tflite":
        operators = Interpreter(model_path=str(file))._get_ops_details()
        kinds = Counter(operator["op_name"] for operator in operators)
        assert (kinds["QUANTIZE"], kinds["DEQUANTIZE"], kinds["CONV_2D"], kinds["PRELU"]) == (1, 1, 6, 5)
    else:
        kinds = Counter(one.get_type_name() for one in openvino.Core().read_model(file).get_ordered_ops())
        assert kinds["Convolution"] == 7  # the last repeats the image
        assert kinds["FakeQuantize"] == 6  # what goes into the six, and no output


def test_ranges_of_activations_are_means_over_the_tiles(folder):
    net = made("plain_m1c4_x2_y").eval()
    tiles = [factor * torch.rand(1, 1, 9, 8) for factor in (1.0, 0.1)]
    write_int8(net, folder / "ranges.onnx", iter([x.numpy() for x in tiles]), per_channel=True)
    graph = onnx.load(folder / "ranges.onnx").graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (conv, *_) = [node for node in graph.node if node.op_type == "Conv"]
    (node,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == conv.output[0]]
    with torch.no_grad():
        outputs = [net.body[0](x) for x in tiles]
    lowest, highest = (np.mean([float(way(y)) for y in outputs]) for way in (torch.amin, torch.amax))
    assert held[node.input[1]] == pytest.approx((max(highest, 0) - min(lowest, 0)) / 255, rel=1e-3)


def test_folders_files_and_arrays_are_the_same_images(folder, tmp_path):
    for name, image in zip("ab", SMALL):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("no image")
    tensors = torch.from_numpy(np.stack(SMALL)).permute(0, 3, 1, 2)
    ways = (SMALL, tmp_path, [tmp_path / "a.png", Image.fromarray(SMALL[1])], [tensors])
    reports = [quantize(NAME, folder / "same.onnx", images, weight_bits=7) for images in ways]
    assert {report.images for report in reports} == {2}
    assert len({report.psnr_db for report in reports}) == 1


def test_a_network_for_luma_is_calibrated_on_luma(folder):
    net = made("repsr_m1c4_x3_y")
    report = quantize(net, folder / "y.onnx", SMALL, weight_bits=7)
    assert Upscaler(folder / "y.onnx")(SMALL[0][:, :, 0]).shape == (120, 180)
    assert report.psnr_db > 25 and [row.name for row in report.layers] == ["body.0", "body.2", "body.4"]
    assert any(module.training is False for module in net.modules())


def test_a_network_in_bfloat16(folder):
    net = made("repsr_m1c4_x2").bfloat16()
    one, other = (
        quantize(each, folder / "half.onnx", SMALL, weight_bits=7).psnr_db for each in (net, made("repsr_m1c4_x2"))
    )
    assert abs(one - other) < 3 and next(net.parameters()).dtype == torch.bfloat16


class Everywhere(nn.Module):
    """Has no receptive radius."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.colors, self.conv = 1, 3, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x + x.mean((2, 3), keepdim=True))


def test_whole_images_where_there_is_no_radius(folder):
    net = Everywhere().eval()
    with pytest.raises(SpecError, match="can only run on whole images"):
        quantize(net, folder / "no.onnx", SMALL)
    assert quantize(net, folder / "whole.onnx", SMALL, tile=0, weight_bits=7).psnr_db > 30


# Few bits


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return fuse(create_model(NAME, pretrained=True)).requires_grad_(False)


TILES = [torch.from_numpy(np.float32(image / 255)).permute(2, 0, 1)[None] for image in SMALL]


def assert_whole(net: nn.Module, per_channel: bool, levels: int) -> None:
    """All weights are whole parts of the largest."""
    for layer in [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]:
        weight = layer.weight.flatten(1).double()
        largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().max()
        parts = levels * weight / largest
        assert (parts - parts.round()).abs().max() < 1e-4 and len(parts.round().unique()) > 7


@pytest.mark.parametrize(("bits", "levels"), [(4, 7), (8, 127)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_learned_weights_are_integers_of_few_bits(per_channel, bits, levels, plain):
    net = finetuned(plain, TILES, bits, per_channel, 2)
    assert_whole(net, per_channel, levels)
    assert [type(module) for module in net.modules()] == [type(module) for module in plain.modules()]
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_network_is_learned_not_the_rounding(plain):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        few, many = (finetuned(plain, TILES, 4, True, steps) for steps in (1, 40))
    again = finetuned(plain, TILES, 4, True, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert all(torch.equal(one, other) for one, other in zip(many.parameters(), again.parameters()))
    first, last = (np.mean([float((net(x) - plain(x)).abs().mean()) for x in TILES]) for net in (few, many))
    assert last < 0.7 * first


def test_a_channel_of_zeros_can_learn():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).requires_grad_(False)
    net[0].weight[1] = 0
    few = finetuned(net, TILES, 4, True, 2)
    assert all(parameter.isfinite().all() for parameter in few.parameters()) and few[0].weight[1].any()


@pytest.mark.parametrize("per_channel", [True, False])
def test_4_bits_lose_less_after_some_steps(per_channel, folder):
    file = folder / "four.tflite"
    options = {"targets": LARGE, "weight_bits": 4, "per_channel": per_channel}
    rounded, trained = (quantize(NAME, file, SMALL, finetune=steps, **options) for steps in (0, 60))
    assert (rounded.finetuned, trained.finetuned, trained.weight_bits) == (0, 60, 4)
    assert trained.psnr_db > rounded.psnr_db + 3 and trained.int8_db > rounded.int8_db + 1
    assert trained.float_db == rounded.float_db and trained.layers == rounded.layers  # of the network as it came
    assert "weights of 4 bits" in str(trained) and "fine-tuned for 60 steps" in str(trained)
    assert "fine-tuned" not in str(rounded)
    small, exact = np.float32(SMALL[0] / 255), np.float32(SMALL[1] / 255)
    found = np.mean([psnr(Upscaler(file)(x).clip(0, 1), Upscaler(NAME)(x).clip(0, 1)) for x in (small, exact)])
    assert trained.psnr_db == pytest.approx(found, abs=1e-3)


def test_4_bits_halve_the_weights(plain, folder):
    sizes = []
    for bits in (8, 4):
        quantize(NAME, folder / "size.tflite", SMALL, weight_bits=bits)
        sizes.append((folder / "size.tflite").stat().st_size)
    weights = sum(layer.weight.numel() for layer in plain.body[::2])
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, abs=200)


# Ranges


def test_ranges_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.PReLU())
    net[0].weight.data = torch.tensor([[-4.0, 2.0], [0.5, -0.5]]).reshape(2, 1, 1, 2)
    (row,) = layer_ranges(net, net)
    assert (row.name, row.spread_before, row.peak_before, row.spread) == ("0", None, None, 8.0)
    assert row.peak == pytest.approx(4 / np.std([-4, 2, 0.5, -0.5]))
    net[0].weight.data[1] = 0
    assert layer_ranges(net, net)[0].spread == np.inf
    net[0].weight.data[:] = 3
    assert layer_ranges(net, net)[0].peak == np.inf


def test_ranges_of_a_block_are_those_of_its_worst_layer():
    block = nn.Sequential(ECB(3, 5))
    weights = [p for p in block.parameters() if p.dim() == 4]
    for weight in weights:
        weight.data = torch.ones_like(weight)
        weight.data[0] = 2
    weights[1].data[-1] = 0.25
    (row,) = layer_ranges(block, fuse(block))
    assert row.name == "0" and row.spread_before == 8
    largest = fuse(block)[0].weight.detach().abs().amax((1, 2, 3))
    assert row.spread == pytest.approx(float(largest.max() / largest.min()))


# Errors


@pytest.mark.parametrize(
    ("path", "images", "options", "error", "match"),
    [
        ("net.pt2", SMALL, {}, SpecError, r"written as .onnx, .xml \(OpenVINO\) or .tflite, but got 'net.pt2'"),
        ("net.tflite", SMALL, {"io": "uint16"}, SpecError, "must be 'float32', 'uint8' or 'int8', but got 'uint16'"),
        (
            "net.onnx",
            SMALL,
            {"io": "uint8"},
            SpecError,
            "io='uint8' is an option of .tflite; input and output of .onnx are float32",
        ),
        ("net.ncnn.param", SMALL, {}, SpecError, "but got 'net.ncnn.param'"),
        ("net.onnx", [], {}, SpecError, "there is no image for calibration"),
        ("net.onnx", SMALL, {"targets": LARGE[:1]}, SpecError, "2 images and 1 targets"),
        (
            "net.onnx",
            SMALL,
            {"targets": SMALL},
            SpecError,
            r"image 0 is enlarged to \(80, 120, 3\), but .* \(40, 60, 3\)",
        ),
        (
            "net.onnx",
            [np.zeros((8, 8, 5), np.uint8)],
            {},
            SpecError,
            r"C of 1 to 4, and not empty, but got \(8, 8, 5\)",
        ),
        ("net.onnx", ["a", 3], {}, SpecError, "a numpy array or a tensor, but got int"),
        ("net.onnx", "nowhere", {}, FileNotFoundError, "there is no folder nowhere"),
        ("net.onnx", ".", {}, FileNotFoundError, r"no image in \. \(looked for .png"),
        ("no/net.onnx", SMALL, {}, FileNotFoundError, "there is no directory .*no$"),
        ("net.tflite", SMALL, {"weight_bits": 5}, SpecError, "must be 4, 7, 8 or None, but got 5"),
        (
            "net.onnx",
            SMALL,
            {"weight_bits": 4},
            SpecError,
            "weight_bits=4 is an option of .tflite; with 4 bits, .onnx would",
        ),
        ("net.xml", SMALL, {"finetune": 20}, SpecError, "finetune=20 is an option of .tflite, for 4 bits; .xml has"),
        ("net.tflite", SMALL, {"finetune": -1}, SpecError, "a number of steps, 0 or more, but got -1"),
    ],
)
def test_what_cannot_be_quantized(path, images, options, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        quantize(NAME, path, images, **options)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_cannot_be_quantized(tmp_path):
    with pytest.raises(SpecError, match="'nothing' is neither a file nor a network with weights"):
        quantize("nothing", tmp_path / "net.onnx", SMALL)
    with pytest.raises(SpecError, match="Conv2d has scale=None"):
        quantize(nn.Conv2d(3, 3, 3), tmp_path / "net.onnx", SMALL)


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(quantizer, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"quantizing needs onnxruntime: pip install 'reparam\[onnx\]'"):
        quantize(NAME, tmp_path / "net.onnx", SMALL)
    monkeypatch.undo()
    Image.fromarray(SMALL[0]).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    monkeypatch.delitem(sys.modules, "reparam.sr._upscale.files", raising=False)
    monkeypatch.delattr("reparam.sr._upscale.files", raising=False)
    with pytest.raises(SpecError, match=r"image files need the package 'pyvips': pip install 'reparam\[upscale\]'"):
        Upscaler(NAME, engine="torch").file(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(SpecError, match=r"image files need the package 'pyvips': pip install 'reparam\[upscale\]'"):
        quantize(NAME, tmp_path / "net.onnx", tmp_path)


# The command


def test_the_command(tmp_path):
    for name, images in (("small", SMALL), ("large", LARGE)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    command = ["quantize", NAME, str(tmp_path / "net.onnx"), "--weight-bits", "7", "--images", str(tmp_path / "small")]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0, table.output
    assert "one scale per channel, 2 images" in table.output and "lost" not in table.output
    result = CliRunner().invoke(
        app, [*command, "--targets", str(tmp_path / "large"), "--per-tensor", "--json", "--overwrite"]
    )
    found = json.loads(result.stdout)
    assert found["per_channel"] is False and found["files"] == [str(tmp_path / "net.onnx")]
    assert found["layers"][2]["name"] == "body.4" and found["layers"][2]["spread_before"] > 1
    report = quantize(NAME, tmp_path / "net.onnx", SMALL, targets=LARGE, per_channel=False, weight_bits=7)
    assert found["int8_db"] == pytest.approx(report.int8_db)
    assert f"{report.float_db:.3f} dB in float32, {report.int8_db:.3f} dB in INT8" in str(report)
    wrong = CliRunner().invoke(app, [*command[:-1], str(tmp_path), "--overwrite"])
    assert wrong.exit_code == 1 and "error: no image in" in wrong.output
