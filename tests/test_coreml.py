"""Packages of Core ML, as far as Linux can tell: what is in them, read back, and where they are put."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers import made
from torch import nn
from typer.testing import CliRunner

from reparam import ExportError, create_model, export, save_checkpoint
from reparam.cli import app
from reparam.deploy import _coreml as coreml
from reparam.deploy import _exporter as exporter
from reparam.deploy import _formats as formats
from reparam.deploy import read_note
from reparam.deploy._notes import about

with coreml._quiet():  # it imports ExecuTorch where that is installed, which warns
    import coremltools

NET = made("plain_m1c4_x2")


def operations_in(package):
    main = coremltools.utils.load_spec(str(package)).mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return [operation.type for operation in block.operations if operation.type != "const"]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    package = tmp_path_factory.mktemp("coreml") / "net.mlpackage"
    report = export(NET, package)
    assert report.engine == "torch, read back" and report.error < 1e-5 and report.files == (package,)
    assert "Core ML runs only on a Mac or an iPhone and has not run this file" in str(report)
    return package


def test_the_graph_is_native(package):
    assert operations_in(package) == ["conv", "prelu", "conv", "prelu", "conv", "conv", "add", "pixel_shuffle"]
    spec = coremltools.utils.load_spec(str(package))
    assert [one.name for one in (*spec.description.input, *spec.description.output)] == ["input", "output"]


def test_the_note_and_the_size(package, tmp_path):
    note = read_note(package)
    assert json.loads(note.pop("reparam"))["network"] == "PlainSR"
    kept = {key: note[key] for key in ("scale", "colors", "radius", "period", "range", "order")}
    assert kept == {"scale": "2", "colors": "3", "radius": "3", "period": "1", "range": "0 to 1", "order": "RGB"}
    assert about(package).shape == (1, 3, None, None)
    export(NET, tmp_path / "fixed.mlpackage", example=torch.rand(2, 3, 14, 17), dynamic=False)
    assert about(tmp_path / "fixed.mlpackage").shape == (1, 3, 14, 17)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["repsr_m4c16_x2", "repsr_m4c16_x3"])
def test_networks_that_come_with_the_package(name, half, tmp_path):
    report = export(create_model(name, pretrained=True), tmp_path / "net.mlpackage", half=half)
    assert report.error < report.bound == (4e-3 if half else 1e-5)
    assert (report.error > 1e-5) == half


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain_m1c4_x1", {"act": "leakyrelu"}),
        ("plain_m1c4_x3_y", {"act": "relu"}),
        ("plain_m1c4_x2", {"act": "softplus"}),
        ("edsr_m1c4_x2", {}),
    ],
)
def test_other_networks(name, options, tmp_path):
    assert export(made(name, **options), tmp_path / "net.mlpackage").error < 1e-5


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, dilation=2), nn.Conv2d(3, 6, (3, 1), groups=3)]
)
def test_every_number_of_a_convolution_is_read_back(layer, tmp_path):
    assert export(layer.eval(), tmp_path / "net.mlpackage", example=torch.rand(1, 3, 11, 12)).error < 1e-5


def test_other_weights_are_found(tmp_path, monkeypatch):
    def spoilt(net, *others):
        net = copy.deepcopy(net)
        net.body[0].weight.data *= 1.01
        return coreml.write_coreml(net, *others)

    (kind,) = (kind for kind in formats.FORMATS if kind.name == "Core ML")
    monkeypatch.setattr(exporter, "FORMATS", (kind._replace(write=spoilt),))
    with pytest.raises(ExportError, match="torch, read back differs by"):
        export(NET, tmp_path / "net.mlpackage")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_checked_is_not_written(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Softmax(1)).eval()
    with pytest.raises(ExportError, match="Core ML's softmax cannot be checked here, and nothing is written unchecked"):
        export(net, tmp_path / "net.mlpackage", example=torch.rand(1, 3, 8, 9))
    padded = nn.Conv2d(3, 3, 3, padding="same").eval()
    with pytest.raises(ExportError, match="a Core ML convolution with pad_type 'same'"):
        export(padded, tmp_path / "net.mlpackage", example=torch.rand(1, 3, 8, 9))
    assert not list(tmp_path.iterdir())


def test_a_package_is_a_folder_that_is_replaced_whole(tmp_path):
    save_checkpoint(NET, tmp_path / "net.safetensors")
    package = tmp_path / "net.mlpackage"
    command = ["export", str(tmp_path / "net.safetensors"), str(package)]
    assert CliRunner().invoke(app, command).exit_code == 0
    (package / "more").write_text("of before")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "net.mlpackage is there already" in again.output
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert not (package / "more").exists() and (package / "Manifest.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mlpackage", "net.safetensors"]
    modes = {path.stat().st_mode & 0o777 for path in package.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "net.safetensors").stat().st_mode & 0o777}
    (tmp_path / "photos.mlpackage").mkdir()  # somebody's folder, and no package
    (tmp_path / "photos.mlpackage" / "a.png").touch()
    with pytest.raises(IsADirectoryError, match=r"cannot write .*photos.mlpackage: it is a directory"):
        export(NET, tmp_path / "photos.mlpackage")
    assert (tmp_path / "photos.mlpackage" / "a.png").exists()


def test_numbers_of_the_input_in_half_precision(tmp_path):
    export(NET, tmp_path / "net.mlpackage", half=True)
    x = np.full((1, 3, 5, 6), 1 / 3, np.float32)
    assert (
        np.abs(coreml.run_read_back(tmp_path / "net.mlpackage")(x) - NET(torch.from_numpy(x)).detach().numpy()).max()
        > 0
    )
    image = coremltools.utils.load_spec(str(tmp_path / "net.mlpackage")).description.input[0].type.multiArrayType
    assert image.dataType == coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT16 == coreml._FLOAT16
