"""Files of ExecuTorch: `pip install -e '.[executorch]' && pytest tests/programs`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import made
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from reparam import ExportError, SpecError, Upscaler, create_model, export, save_checkpoint
from reparam.bench import bench_inference
from reparam.cli import app
from reparam.deploy import open_engine, read_note
from reparam.deploy._executorch import LARGEST_SIDE, _without_notes
from reparam.deploy._notes import about

with _without_notes():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

NET = made("plain_m1c4_x2")
IMAGE = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("executorch") / "net.pte"
    report = export(NET, file)
    assert report.engine == "executorch" and report.error < 1e-5 and report.remark == "XNNPACK runs all of it"
    return file


def executed(file, x):
    """What an app gets: no line of this library's."""
    (y,) = Runtime.get().load_program(file).load_method("forward").execute([x])
    return y.clone()


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 31, 5), (1, 3, 300, 70)])
def test_it_is_equal_at_awkward_sizes(shape, file):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (executed(file, x) - NET(x)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["repsr_m4c16_x2", "repsr_m4c16_x3", "repsr_m4c16_x2_y"])
def test_networks_that_come_with_the_package(name, tmp_path):
    report = export(create_model(name, pretrained=True), tmp_path / "net.pte")
    assert report.error < 1e-5 and report.remark == "XNNPACK runs all of it"


def test_what_is_left_to_others_is_named(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.CELU(), nn.PixelShuffle(2)).eval()
    report = export(net, tmp_path / "net.pte", example=torch.rand(1, 3, 8, 9))
    assert report.error < 1e-5 and report.remark.startswith("XNNPACK runs all but aten.")
    assert "transpos" not in report.remark and "convolution" not in report.remark  # the shuffle is XNNPACK's


def test_the_note_and_the_size(file, tmp_path):
    note = read_note(file)
    assert json.loads(note.pop("reparam"))["network"] == "PlainSR"
    assert note == {"scale": "2", "colors": "3", "radius": "3", "period": "1", "range": "0 to 1", "order": "RGB"}
    assert about(file).shape is None  # up to LARGEST_SIDE
    assert Runtime.get().load_program(file).load_method("scale").execute([]) == [2]
    export(NET, tmp_path / "fixed.pte", example=torch.rand(1, 3, 14, 17), dynamic=False)
    assert about(tmp_path / "fixed.pte").shape == (1, 3, 14, 17)
    with pytest.raises(SpecError, match="fixed.pte accepts 1 x 3 x 14 x 17, but got an image of 1 x 3 x 8 x 9"):
        open_engine(tmp_path / "fixed.pte", "executorch")(np.zeros((1, 3, 8, 9), np.float32))
    whole = Upscaler(NET, engine="torch")(IMAGE)
    assert np.abs(Upscaler(tmp_path / "fixed.pte")(IMAGE) - whole).max() < 1e-5


def test_upscaler_and_commands(file, tmp_path):
    whole = Upscaler(NET, engine="torch")(IMAGE)
    upscaler = Upscaler(file, tile=9)
    assert (upscaler.engine, upscaler.scale, upscaler.radius) == ("executorch", 2, 3)
    assert np.abs(upscaler(IMAGE) - whole).max() < 1e-5
    Image.fromarray((255 * IMAGE).astype(np.uint8)).save(tmp_path / "photo.png")
    command = ["upscale", str(tmp_path / "photo.png"), "-o", str(tmp_path), "--model", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0 and (tmp_path / "photo_x2.png").exists()
    report = bench_inference(NET, 9, 12, engines=["executorch"], files=[file], rounds=1)
    assert [(row.graph, row.engine) for row in report.rows[-1:]] == [("net.pte", "executorch")]
    assert report.files[0].operators == 1  # all of it is one call of XNNPACK


def test_threads_of_one_file_are_those_of_all(file):
    code = f"""
import numpy as np, torch
from pathlib import Path
from reparam import SpecError
from reparam.deploy import open_engine
file, x = Path({str(file)!r}), np.random.rand(1, 3, 64, 64).astype(np.float32)
one = open_engine(file, "executorch", threads=1)
wanted = one(x)
two = [open_engine(file, "executorch", threads=threads) for threads in (1, 0)]
assert all([np.array_equal(run(x), wanted) for run in two])
try:
    open_engine(file, "executorch", threads=3)
except SpecError as error:
    print(error)
del one, two
assert np.array_equal(open_engine(file, "executorch", threads=3)(x), wanted)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "fixed at 1 threads while a file is open, but got threads=3; pass threads=0" in done.stdout


def test_larger_images_than_it_has_memory_for(file):
    run = open_engine(file, "executorch")
    with pytest.raises(ExportError, match=rf"ExecuTorch fails for an image of .*up to {LARGEST_SIDE} pixels per side"):
        run(np.zeros((1, 3, LARGEST_SIDE + 1, LARGEST_SIDE), np.float32))


def test_a_program_of_others(tmp_path):
    with torch.no_grad():
        program = torch.export.export(NET, (torch.rand(1, 3, 16, 16),))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (tmp_path / "net.pte").write_bytes(lowered.to_executorch().buffer)
    upscaler = Upscaler(tmp_path / "net.pte", tile=0)
    assert (upscaler.scale, upscaler.colors) == (2, 3)
    assert upscaler(IMAGE[:16, :16]).shape == (32, 32, 3)


def test_the_command(tmp_path):
    save_checkpoint(NET, tmp_path / "net.safetensors")
    command = ["export", str(tmp_path / "net.safetensors"), str(tmp_path / "net.pte"), "--size", "9x12"]
    result = CliRunner().invoke(app, command)
    assert "ExecuTorch, differs by" in result.output and "XNNPACK runs all of it" in result.output
    refused = CliRunner().invoke(app, [*command, "--half", "--overwrite"])
    assert refused.exit_code == 1 and "half=True is an option of .onnx and .tflite and .mlpackage" in refused.output
