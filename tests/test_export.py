"""Files for other programs: equal there, lean, and in place only when they are."""

import json
import re
from collections import Counter
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from helpers import made
from torch import nn
from typer.testing import CliRunner

from reparam import (
    ExportError,
    RepSRBlock,
    SpecError,
    Upscaler,
    create_model,
    export,
    freeze_bn_stats,
    fuse,
    load_checkpoint,
    save_checkpoint,
    swap_convs,
)
from reparam.cli import app
from reparam.deploy import _exporter as exporter
from reparam.deploy import _formats as formats
from reparam.deploy import read_note
from reparam.deploy._lean import Gather, lean, one_by_one
from reparam.deploy._notes import about
from reparam.models import PlainSR

SUFFIXES = (".onnx", ".pt2", ".xml", ".ncnn.param", ".tflite")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return made("repsr_m2c8_x2")


@pytest.fixture(scope="module")
def files(net, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    for suffix in SUFFIXES:
        export(net, folder / f"my-net v2{suffix}")
    return {suffix: folder / f"my-net v2{suffix}" for suffix in SUFFIXES}


def run(file: Path, x: torch.Tensor) -> np.ndarray:
    """What a user's program gets of a file; for ncnn and torch.export as the library reads them."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    if file.suffix == ".xml":
        return openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    kind = next(kind for kind in formats.FORMATS if file.name.endswith(kind.suffixes[0]))
    return kind.read(file)[1](x.numpy())


def assert_equal_there(net: nn.Module, file: Path, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))
        with torch.inference_mode():
            y = net(x).numpy()
            assert np.abs(run(file, x) - y).max() <= 1e-5 * np.abs(y).max(), shape


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_equal_at_awkward_sizes(suffix, net, files):
    shapes = [(1, 3, *size) for size in ((1, 1), (2, 3), (7, 40), (31, 5), (64, 48))]
    assert_equal_there(net, files[suffix], *shapes, (3, 3, 6, 5))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("repsr_m1c4_x3_y", {}),
        pytest.param("ecbsr_m1c4_x4", {"act": "relu"}, marks=pytest.mark.nightly),
        ("plain_m1c4_x2", {"act": "softplus", "base": "bilinear"}),
        pytest.param("plain_m1c4_x1", {"act": "leakyrelu"}, marks=pytest.mark.nightly),
        pytest.param("collapsiblesr_m1c4_x2", {"act": "linear"}, marks=pytest.mark.nightly),
        ("sesr_m3_x2", {}),
        ("edsr_m1c4_x4", {"block": RepSRBlock}),
    ],
)
def test_every_network_in_onnx_openvino_and_ncnn(name, options, tmp_path):
    net = made(name, **options)
    for suffix in (".onnx", ".xml", *[".ncnn.param"] * (name[:5] in ("plain", "edsr_"))):
        report = export(net, tmp_path / f"net{suffix}")
        assert report.error < 1e-5 and all(file.exists() for file in report.files)
        assert_equal_there(net, tmp_path / f"net{suffix}", (1, net.colors, 9, 4), (2, net.colors, 3, 8))


def test_the_onnx_graph_is_lean(files):
    model = onnx.load(files[".onnx"])
    assert Counter(node.op_type for node in model.graph.node) == {
        "Conv": 4, "PRelu": 3, "Gather": 1, "Add": 1, "DepthToSpace": 1,
    }  # fmt: skip
    assert [node.op_type for node in model.graph.node][-2:] == ["Add", "DepthToSpace"]
    assert model.opset_import[0].version == 18
    (image,), (enlarged,) = model.graph.input, model.graph.output
    assert (image.name, enlarged.name) == ("input", "output")
    sizes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_the_opset_that_is_asked_for(opset, net, tmp_path):
    file = tmp_path / "net.onnx"
    assert export(net, file, opset=opset).error < 1e-5
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    assert model.ir_version == {11: 6, 13: 7, 17: 8, 20: 9}[opset]  # the format's, which old programs look at first
    assert Counter(node.op_type for node in model.graph.node) == {
        "Conv": 4, "PRelu": 3, "Gather": 1, "Add": 1, "DepthToSpace": 1,
    }  # fmt: skip
    assert read_note(file)["scale"] == "2"
    assert_equal_there(net, file, (2, 3, 5, 7))


def test_opsets_that_cannot_be(net, tmp_path):
    with pytest.raises(ExportError, match="opset 9 lacks what the network needs: .*mode.* DepthToSpace"):
        export(net, tmp_path / "net.onnx", opset=9)
    resized = made("plain_m1c4_x2", base="bilinear")
    with pytest.raises(ExportError, match="opset 10 lacks what the network needs: "):
        export(resized, tmp_path / "net.onnx", opset=10)
    with pytest.raises(ExportError, match=r"but got opset=99|opset_version.*99|99"):
        export(net, tmp_path / "net.onnx", opset=99)
    assert not list(tmp_path.iterdir())


def test_what_an_older_opset_means_by_it_is_found_by_running(tmp_path):
    softmax = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1))  # over all that follows axis 1, up to opset 12
    with pytest.raises(ExportError, match=r"onnxruntime differs by .* for an input of \(1, 3, 5, 6\)"):
        export(softmax.eval(), tmp_path / "net.onnx", example=torch.rand(1, 3, 5, 6), opset=12)
    assert export(softmax, tmp_path / "net.onnx", example=torch.rand(1, 3, 5, 6), opset=13).error < 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_sizes_that_are_fixed(suffix, files, tmp_path):
    net, example, file = made("plain_m1c4_x2"), torch.rand(1, 3, 6, 10), tmp_path / f"net{suffix}"
    assert export(net, file, example=example, dynamic=False).shapes == ((1, 3, 6, 10),)
    assert about(file).shape == (1, 3, 6, 10)
    assert export(net, file, example=example, dynamic="batch").shapes == ((1, 3, 6, 10), (2, 3, 6, 10))
    assert about(file).shape == (None, 3, 6, 10)
    assert_equal_there(net, file, (1, 3, 6, 10), (5, 3, 6, 10))
    assert about(files[suffix]).shape == (None, 3, None, None)


def test_sizes_that_nobody_said(net, tmp_path):
    with pytest.raises(SpecError, match=r"dynamic='batch' fixes the sizes to those of an example: pass example="):
        export(net, tmp_path / "net.onnx", dynamic="batch")
    with pytest.raises(SpecError, match=r"dynamic must be True, False or 'batch', but got 'height'"):
        export(net, tmp_path / "net.onnx", dynamic="height")
    assert not list(tmp_path.iterdir())


def test_the_graph_of_openvino_adds_a_convolution(files):
    operations = openvino.Core().read_model(files[".xml"]).get_ordered_ops()
    kinds = Counter(operation.get_type_name() for operation in operations)
    kinds = {kind: number for kind, number in kinds.items() if kind not in ("Constant", "Parameter", "Result")}
    # Four with their biases, and the one that repeats the image.
    assert kinds == {"Convolution": 5, "PRelu": 3, "Add": 5, "DepthToSpace": 1}


@pytest.mark.parametrize("repeat", [Gather, one_by_one])
@pytest.mark.parametrize("name", ["plain_m1c4_x1", "plain_m1c4_x2", "plain_m1c4_x3_y", "plain_m1c4_x4"])
def test_lean_networks_give_the_same_bits(repeat, name):
    net = made(name)
    before = net.state_dict().keys()
    x = torch.rand(2, net.colors, 7, 5)
    assert torch.equal(lean(net, repeat)(x), net(x)) and lean(net, repeat) is not net
    assert net.state_dict().keys() == before


class Clipped(PlainSR):
    def forward(self, x):
        return super().forward(x).clamp(0, 1)


def test_what_is_no_network_of_this_library_stays_as_it_is(tmp_path):
    for net in (made("plain_m1c4_x2", base="bilinear"), made("sesr_m3_x2"), Clipped(channels=4), nn.ReLU()):
        assert lean(net, Gather) is net
    hooked = made("plain_m1c4_x2")
    hooked.register_forward_hook(lambda module, inputs, y: y.clamp(0.2, 0.5))
    export(hooked, tmp_path / "net.onnx")
    assert_equal_there(hooked, tmp_path / "net.onnx", (1, 3, 9, 4))


def test_ncnn_has_no_more_than_the_network(files):
    kinds = Counter(line.split()[0] for line in files[".ncnn.param"].read_text().splitlines()[2:])
    assert kinds == {
        "Input": 1, "Split": 1, "Convolution": 4, "PReLU": 3, "PixelShuffle": 1, "Interp": 1, "BinaryOp": 1,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_the_note_says_all_that_a_program_needs(suffix, files, net):
    if suffix == ".pt2":
        note = dict.fromkeys(("scale", "colors", "radius", "period", "range", "order", "reparam"), "")
        torch.export.load(files[suffix], extra_files=note)
        note = {key: value.decode() if isinstance(value, bytes) else value for key, value in note.items()}
    else:
        note = read_note(files[suffix])
    about = json.loads(note.pop("reparam"))
    assert note == {"scale": "2", "colors": "3", "radius": "4", "period": "1", "range": "0 to 1", "order": "RGB"}
    assert about["network"] == "RepSR" and about["options"] == net.options


def test_the_users_network_is_left_as_it_is(tmp_path):
    net = made("repsr_m1c4_x2").train()
    freeze_bn_stats(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    export(net.double(), tmp_path / "net.pt2")
    assert net.training and isinstance(net.body[0], RepSRBlock)
    assert all(torch.equal(value, before[key].to(value)) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.dtype == torch.float64 for parameter in net.parameters())


def test_other_peoples_networks(tmp_path):
    torch.manual_seed(0)
    denoiser = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 3, padding=1)).eval()
    swap_convs(denoiser, RepSRBlock)
    report = export(denoiser, tmp_path / "denoiser.onnx", example=torch.rand(1, 1, 12, 10))
    assert report.shapes == ((1, 1, 12, 10), (2, 1, 12, 10), (1, 1, 13, 12))
    assert_equal_there(denoiser, tmp_path / "denoiser.onnx", (2, 1, 5, 30))
    assert Counter(node.op_type for node in onnx.load(tmp_path / "denoiser.onnx").graph.node) == {"Conv": 2, "Relu": 1}
    classifier = timm.create_model("repvgg_a0", num_classes=7)
    classifier(torch.rand(2, 3, 64, 64))
    classifier.eval()
    export(classifier, tmp_path / "classifier.onnx", example=torch.rand(1, 3, 64, 64))
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "classifier.onnx").graph.node)
    assert kinds["Conv"] == 22 and "BatchNormalization" not in kinds
    export(classifier, tmp_path / "fixed.onnx", example=torch.rand(1, 3, 64, 64), dynamic=False)
    assert onnx.load(tmp_path / "fixed.onnx").graph.input[0].type.tensor_type.shape.dim[2].dim_value == 64


def test_an_example_of_one_image_leaves_the_batch_free(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).eval()
    assert export(net, tmp_path / "net.pt2", example=torch.rand(1, 1, 8, 9)).shapes[1] == (2, 1, 8, 9)
    assert_equal_there(net, tmp_path / "net.pt2", (3, 1, 5, 6))


# What goes wrong


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize("step", ["write", "read", "other numbers", "no number", "other shape"])
def test_nothing_is_written_unless_it_is_right(suffix, step, net, tmp_path, monkeypatch):
    kind = next(kind for kind in formats.FORMATS if kind.suffixes[0] == suffix)

    def broken(*_):
        raise RuntimeError("so it is")

    if step in ("write", "read"):
        kind = kind._replace(**{step: broken})
    else:
        twist = {
            "other numbers": lambda y: y * 1.001,
            "no number": lambda y: y * np.float32("nan"),
            "other shape": lambda y: y[..., 1:],
        }[step]
        read = kind.read
        kind = kind._replace(read=lambda file: ("program", lambda x: twist(read(file)[1](x))))
    monkeypatch.setattr(exporter, "FORMATS", (kind,))
    (tmp_path / f"net{suffix}").write_bytes(b"old")
    message = {
        "write": "cannot export RepSR as .*; if you need only one size, try dynamic=False: so it is",
        "read": "cannot be loaded: so it is",
        "other numbers": r"program differs by 1.0e-03 of the largest value for an input of \(1, 3, 1, 1\)",
        "no number": r"program differs by nan of the largest value for an input of \(1, 3, 1, 1\)",
        "other shape": r"program returns \(1, 3, 2, 1\) for an input of \(1, 3, 1, 1\), but torch .* \(1, 3, 2, 2\)",
    }
    with pytest.raises(ExportError, match=message[step]):
        export(net, tmp_path / f"net{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]
    assert (tmp_path / f"net{suffix}").read_bytes() == b"old"


def test_bad_arguments(net, tmp_path, monkeypatch):
    with pytest.raises(
        SpecError, match=r"'net.tfl'; known are .onnx \(ONNX\), .pt2 \(torch.export\), .xml \(OpenVINO\)"
    ):
        export(net, tmp_path / "net.tfl")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        export(net, tmp_path / "no" / "net.onnx")
    with pytest.raises(SpecError, match="Conv2d does not say what its input is: pass example="):
        export(nn.Conv2d(3, 3, 3), tmp_path / "net.onnx")
    with pytest.raises(Exception, match="batch statistics"):
        export(create_model("repsr_m1c4_x2"), tmp_path / "net.onnx")
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name.startswith("onnx") else True)
    with pytest.raises(ExportError, match=r"ONNX needs onnx and onnxscript: pip install 'reparam\[onnx\]'"):
        export(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "needs"),
    [
        (".pte", r"ExecuTorch needs executorch: pip install 'reparam\[executorch\]'"),
        (".mlpackage", r"Core ML needs coremltools: pip install 'reparam\[coreml\]'"),
    ],
)
def test_a_package_that_is_missing(suffix, needs, net, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=needs):
        export(net, tmp_path / f"net{suffix}")
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """A network of images whose output is what a function makes of the input."""

    scale, colors = 1, 3

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_outputs_that_are_no_tensor(tmp_path):
    with pytest.raises(ExportError, match="Odd returns a tuple: export a module whose output is one tensor"):
        export(Odd(lambda x: (x, x)), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"Odd itself fails for .*\(2, 3, 8, 9\): .* pass example=, an input"):
        export(Odd(lambda x: x.reshape(2, 3, 7, 7)), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fails", "shape"),
    [
        (lambda batch, height, width: batch == 1, (1, 3, 1, 1)),
        (lambda batch, height, width: batch > 1, (2, 3, 8, 9)),
        (lambda batch, height, width: height % 2 and width > 1, (1, 3, 3, 5)),
        (lambda batch, height, width: height > 16, (1, 3, 17, 4)),
        (lambda batch, height, width: width > 32, (1, 3, 4, 33)),
    ],
    ids=["one image", "several images", "odd height", "high", "wide"],
)
def test_an_engine_that_fails_at_a_size(fails, shape, net, tmp_path, monkeypatch):
    kind = next(kind for kind in formats.FORMATS if kind.name == "torch.export")

    def choosy(x):
        if fails(x.shape[0], *x.shape[2:]):
            raise RuntimeError("so it is")
        with torch.inference_mode():
            return net(torch.from_numpy(x)).numpy()

    monkeypatch.setattr(exporter, "FORMATS", (kind._replace(read=lambda file: ("program", choosy)),))
    with pytest.raises(ExportError, match=f"program fails for an input of {re.escape(str(shape))}: so it is"):
        export(net, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_an_output_of_zeros(tmp_path):
    assert export(Odd(lambda x: x * 0), tmp_path / "net.onnx").error == 0


def test_what_ncnn_does_not_know(tmp_path):
    with pytest.raises(
        ExportError, match=r"ncnn file cannot be loaded: ncnn does not support everything in net.ncnn.param"
    ):
        export(Odd(lambda x: x.repeat_interleave(2, 1)), tmp_path / "net.ncnn.param")
    assert not list(tmp_path.iterdir())


def test_ncnn_says_when_it_fails(files, monkeypatch):
    monkeypatch.setattr(ncnn.Extractor, "extract", lambda self, name: (-100, None))
    with pytest.raises(ExportError, match=r"ncnn fails with code -100 for an image of \(3, 5, 6\)"):
        run(files[".ncnn.param"], torch.rand(1, 3, 5, 6))


def test_what_pnnx_cannot_read(net, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit.ScriptModule, "save", lambda self, file: file.write_bytes(b"no network"))
    with pytest.raises(ExportError, match="pnnx could not convert the network: "):
        export(net, tmp_path / "net.ncnn.param")
    assert not list(tmp_path.iterdir())


def test_networks_of_the_main_program_in_ncnn(tmp_path):
    export(Odd(torch.relu), tmp_path / "net.ncnn.param")  # of a function, which no other process could load
    assert_equal_there(Odd(torch.relu), tmp_path / "net.ncnn.param", (2, 3, 5, 6))


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_network_without_a_radius(suffix, tmp_path):
    file, image = tmp_path / f"net{suffix}", np.random.default_rng(0).random((9, 7, 3), np.float32)
    export(Odd(lambda x: x + x.mean((2, 3), keepdim=True)), file)
    assert read_note(file).keys() == {"scale", "colors", "range", "order", "reparam"}
    with pytest.raises(SpecError, match=r"net.* does not say its radius.* tile=0"):
        Upscaler(file)
    assert np.abs(Upscaler(file, tile=0)(image) - image - image.mean((0, 1))).max() < 1e-5


@pytest.mark.parametrize("taken", ["net.xml", "net.bin"])
def test_a_directory_in_the_way(taken, net, tmp_path):
    (tmp_path / taken).mkdir()
    with pytest.raises(IsADirectoryError, match=f"cannot write .*{taken}: it is a directory; choose another name"):
        export(net, tmp_path / "net.xml")
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_without_onnxruntime_the_reference_checks(net, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert export(net, tmp_path / "net.onnx").engine == "onnx"


def command(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def test_the_commands(net, tmp_path):
    save_checkpoint(net, tmp_path / "net.safetensors")
    result = command("export", tmp_path / "net.safetensors", tmp_path / "net.pt2")
    assert result.exit_code == 0 and "net.pt2: torch.export, differs by 0e+00 in torch (5 shapes)" in result.output
    assert_equal_there(net, tmp_path / "net.pt2", (1, 3, 5, 6))
    report = json.loads(
        command("export", tmp_path / "net.safetensors", tmp_path / "net.pt2", "--json", "--overwrite").output
    )
    assert report["error"] == 0 and report["engine"] == "torch"
    fixed = ("export", tmp_path / "net.safetensors", tmp_path / "fixed.pt2", "--overwrite", "--size")
    for options, shape in ((("9x12",), (1, 3, 9, 12)), (("9x12", "--batch", 0), (None, 3, 9, 12))):
        assert command(*fixed, *options).exit_code == 0 and about(tmp_path / "fixed.pt2").shape == shape
    for options, told in ((("9",), "such as 720x1280, but got '9'"), (("0x9",), "but got '0x9'")):
        assert told in command(*fixed, *options).output
    assert "--batch 2 needs --size" in command(*fixed[:-1], "--batch", 2).output
    bad = command("export", tmp_path / "net.safetensors", tmp_path / "net.xyz")
    assert bad.exit_code == 1 and bad.output.startswith("error: the suffix selects")
    checked = command("verify", tmp_path / "net.safetensors")
    assert checked.exit_code == 0 and "end to end" in checked.output and "body.2" in checked.output
    save_checkpoint(
        load_checkpoint(tmp_path / "net.safetensors").train(False), tmp_path / "again.pth", wrapper="params"
    )
    assert command("verify", tmp_path / "again.pth", "--wrapper", "params", "--size", "9").exit_code == 0
    found = json.loads(command("verify", tmp_path / "net.safetensors", "--json").output)
    assert found["ok"] and found["blocks"][1]["name"] == "body.2" and found["total"]["max_abs"] < 1e-5


def test_verify_says_when_they_differ(net, tmp_path, monkeypatch):
    def wrong(model):
        plain = fuse(model)
        plain.body[0].weight.data *= 1.01
        return plain

    save_checkpoint(net, tmp_path / "net.safetensors")
    monkeypatch.setattr("reparam.fusing.fuse", wrong)
    result = command("verify", tmp_path / "net.safetensors")
    assert result.exit_code == 1 and "LARGER THAN ROUNDING" in result.output
    result = command("verify", tmp_path / "net.safetensors", "--json")
    assert result.exit_code == 1 and not json.loads(result.output)["ok"]
