"""Files are written whole or not at all, wherever they lie, and never onto what they are made of."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from helpers import made
from PIL import Image
from typer.testing import CliRunner

from reparam import ConvSpec, SpecError, draw, export, fuse_file, quantize, save_checkpoint
from reparam.branches import IdentityBranch
from reparam.cli import app
from reparam.deploy import _exporter as exporter
from reparam.deploy._cache import keep
from reparam.files._tensor_files import write_file
from reparam.files._writing import check_targets, written
from reparam.sr._upscale.files import Photo

ELSEWHERE = Path("/dev/shm")
NET = made("repsr_m1c4_x2")
PIXELS = np.zeros((24, 32, 3), np.uint8)


def write_picture(pixels: np.ndarray, path: Path) -> None:
    photo = Photo(path, pyvips.Image.new_from_array(pixels), 1, [])
    photo.write([torch.from_numpy(pixels).permute(2, 0, 1)[None]], path, 1)


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def fused_from(path: Path) -> None:
    save_checkpoint(NET, source := path.with_name("source.pth"))
    fuse_file(source, path, act="prelu")
    source.unlink()


def written_by_the_demo(path: Path) -> None:
    from reparam.sr import _demo as demo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "train", lambda net, *_: net(torch.rand(2, 3, 8, 8)))
        patch.setattr(demo, "time_pair_ms", lambda *_: (0.0, 0.0))
        patch.setattr(demo, "files_in", lambda out: (path, path.with_name("demo.png")))
        demo.run_demo(path.parent)
    path.with_name("demo.png").unlink()


WRITERS = {
    "net.safetensors": lambda path: save_checkpoint(NET, path),
    "net.pth": lambda path: save_checkpoint(NET, path),
    "fused.pth": fused_from,
    "net.pt2": lambda path: export(NET, path),
    "net.onnx": lambda path: export(NET, path),
    "net.xml": lambda path: export(NET, path),
    "net.ncnn.param": lambda path: export(NET, path),
    "int8.onnx": lambda path: quantize(NET, path, [PIXELS]),
    "int8.xml": lambda path: quantize(NET, path, [PIXELS], weight_bits=7),
    "image.png": lambda path: write_picture(PIXELS, path),
    "deep.png": lambda path: write_picture(PIXELS.astype(np.uint16), path),
    "drawing.svg": lambda path: draw(IdentityBranch(ConvSpec(3, 3, 3, padding=1))).save(path),
    "demo.safetensors": written_by_the_demo,
    "record.json": lambda path: keep(path.name, lambda file: file.write_text("{}")),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Of the cache, too."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "reparam").mkdir()
    return tmp_path / "reparam"


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_is_written_takes_the_place_of_a_file_in_one_step(name, folder, monkeypatch):
    path, other_name = folder / name, folder / "hard link"
    path.write_bytes(b"old")
    path.chmod(0o600)
    other_name.hardlink_to(path)  # shows a file that is written in place
    moves, move = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moves.append((self, Path(target))) or move(self, target))
    WRITERS[name](path)
    assert other_name.read_bytes() == b"old" and path.read_bytes() != b"old"
    (made_in,) = [made.parent for made, target in moves if target == path]
    assert made_in.parent == folder  # so that the move is none across devices, which would copy
    others = {"net.xml": ["net.bin"], "int8.xml": ["int8.bin"], "net.ncnn.param": ["net.ncnn.bin"]}.get(name, [])
    assert names_in(folder) == sorted([name, "hard link", *others])
    (folder / "any").touch()
    assert {(folder / file).stat().st_mode for file in [name, *others]} == {(folder / "any").stat().st_mode}


def test_the_longest_name_that_there_is(tmp_path):
    path = tmp_path / f"{'n' * 251}.pth"
    save_checkpoint(NET, path)
    assert names_in(tmp_path) == [path.name]
    image = tmp_path / f"{'n' * 251}.png"
    write_picture(PIXELS, image)
    assert image.exists()


@pytest.mark.parametrize("problem", [OSError("full"), KeyboardInterrupt(), SystemExit(143)])
def test_nothing_is_left_of_what_fails(problem, tmp_path):
    (tmp_path / "a").write_text("old")

    def fail(unfinished: Path) -> None:
        unfinished.write_text("half")
        unfinished.with_name("beside").write_text("half")
        raise problem

    with pytest.raises(type(problem)), written(tmp_path / "a") as unfinished:
        fail(unfinished)
    assert names_in(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_two_that_write_one_file_leave_one_of_the_two(tmp_path):
    with written(tmp_path / "a") as one, written(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
        assert (one.read_text(), other.read_text()) == ("one", "other")
    assert names_in(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "one"


def test_links_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    for target in ("there", "not yet"):
        (tmp_path / "link.pth").symlink_to(tmp_path / "far" / target)
        save_checkpoint(NET, tmp_path / "link.pth")
        assert (tmp_path / "link.pth").is_symlink() and (tmp_path / "far" / target).stat().st_size > 1000
        (tmp_path / "link.pth").unlink()
    assert names_in(tmp_path / "far") == ["not yet", "there"]


@pytest.mark.parametrize("which", ["a", "beside"])
def test_a_link_to_another_device(which, tmp_path):
    """One that the move itself would refuse."""
    assert ELSEWHERE.stat().st_dev != tmp_path.stat().st_dev
    far = ELSEWHERE / f"reparam-test-{os.getpid()}"
    far.mkdir()
    try:
        (tmp_path / which).symlink_to(far / "file")
        with written(tmp_path / "a") as unfinished:
            unfinished.write_text("new a")
            unfinished.with_name("beside").write_text("new beside")
        assert (far / "file").read_text() == f"new {which}" and (tmp_path / which).is_symlink()
        assert names_in(far) == ["file"] and names_in(tmp_path) == ["a", "beside"]
    finally:
        for file in far.iterdir():
            file.unlink()
        far.rmdir()


def test_a_move_that_fails_for_another_reason(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EBUSY, "Device or resource busy", str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="busy: .*a"), written(tmp_path / "a") as unfinished:
        unfinished.write_text("all")
    assert names_in(tmp_path) == []


def test_the_file_is_named_where_nothing_can_be_made():
    with pytest.raises(OSError, match=r"'/proc/reparam.pth'"):
        save_checkpoint(NET, "/proc/reparam.pth")


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, error, match in (
        (tmp_path / "no" / "a", FileNotFoundError, "cannot write .*a: there is no directory .*no"),
        (tmp_path / "folder", IsADirectoryError, "cannot write .*folder: it is a directory; choose another name"),
        (Path("/dev/null"), SpecError, "cannot write /dev/null: it is a device or a pipe"),
    ):
        with pytest.raises(error, match=match):
            check_targets([tmp_path / "fine", path])
        with pytest.raises(error, match=match), written(path):
            pytest.fail("it went on")
    assert Path("/dev/null").is_char_device()


def linked(source: Path, how: str) -> Path:
    """Another name of a file."""
    target = source.with_name(f"{how}{source.suffix}")
    if how == "symlink":
        target.symlink_to(source)
    elif how == "hardlink":
        target.hardlink_to(source)
    return source if how == "same" else target


HOW = pytest.mark.parametrize("how", ["same", "symlink", "hardlink"])


@HOW
def test_nothing_is_written_onto_what_it_is_made_of(how, tmp_path):
    source = tmp_path / "net.onnx"  # files are read by their content
    write_file(NET.state_dict(), source)
    before, target = source.read_bytes(), linked(source, how)
    match = f"cannot write .*{target.name}: it is .*net.onnx, which is one of its sources"
    with pytest.raises(SpecError, match=match):
        fuse_file(source, target, act="prelu")
    with pytest.raises(SpecError, match=match):
        quantize(source, target, [PIXELS])
    for command in (("fuse",), ("export",), ("quantize", "--images", str(tmp_path))):
        result = CliRunner().invoke(app, [*command, str(source), str(target), "--overwrite"])
        assert result.exit_code == 1 and "which is one of its sources; choose another name" in result.output, (
            result.output
        )
    assert source.read_bytes() == before


@HOW
def test_no_image_is_written_onto_one_that_is_read(how, tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    linked(tmp_path / "b.png", how).rename(tmp_path / "a_x2.png")
    before = (tmp_path / "a_x2.png").read_bytes()
    sources = [str(file) for file in tmp_path.iterdir()]
    command = ["upscale", *sources, "-o", str(tmp_path), "--engine", "torch", "--overwrite"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "which is one of its sources" in result.output
    assert (tmp_path / "a_x2.png").read_bytes() == before and len(list(tmp_path.iterdir())) == len(sources)


def test_files_that_are_there_are_replaced_on_request_only(tmp_path):
    """Every command that writes; in Python, a file is replaced, as everywhere."""
    save_checkpoint(NET, source := tmp_path / "net.safetensors")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    commands = {
        "out.pth": ("fuse", source, tmp_path / "out.pth"),
        "out.pt2": ("export", source, tmp_path / "out.pt2"),
        "out.bin": ("export", source, tmp_path / "out.xml"),
        "out.onnx": ("quantize", source, tmp_path / "out.onnx", "--images", tmp_path),
        "a_x2.png": ("upscale", tmp_path / "a.png", "-o", tmp_path, "--model", source, "--engine", "torch"),
        "comparison.png": ("demo", "--out", tmp_path),
    }
    for name, command in commands.items():
        (tmp_path / name).write_bytes(b"old")
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 1 and "is there already; choose another name, or --overwrite" in result.output, name
        assert (tmp_path / name).read_bytes() == b"old"
    for name in ("out.pth", "out.pt2", "a_x2.png"):
        result = CliRunner().invoke(app, [*map(str, commands[name]), "--overwrite"])
        assert result.exit_code == 0 and (tmp_path / name).stat().st_size > 3, result.output


def test_weights_beside_a_large_graph(tmp_path, monkeypatch):
    """As of networks beyond 2 GB, which ONNX cannot hold in one file."""
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, file: save(self, file, external_data=True))
    report = export(NET, tmp_path / "net.onnx")
    assert report.files == (tmp_path / "net.onnx", tmp_path / "net.onnx.data")
    assert names_in(tmp_path) == ["net.onnx", "net.onnx.data"]
    assert exporter.holds(tmp_path / "net.onnx", exporter.plain_copy(NET))


STALLED = """
import sys, time
import torch
from reparam.cli import app

def half(content, path, *_):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)

torch.save = half
app(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after_a_signal(number, tmp_path):
    save_checkpoint(NET, tmp_path / "net.safetensors")
    (tmp_path / "out.pth").write_text("old")
    command = [sys.executable, "-c", STALLED, "fuse", "net.safetensors", "out.pth", "--overwrite"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 3
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    process.communicate()
    assert process.returncode == 128 + number
    assert names_in(tmp_path) == ["net.safetensors", "out.pth"]
    assert (tmp_path / "out.pth").read_text() == "old"


def test_the_command_leaves_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    during = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reparam.models.list_models", lambda *_, **__: during.append(signal.getsignal(15)) or ["a"])
        assert CliRunner().invoke(app, ["models"]).exit_code == 0
        thread = threading.Thread(target=lambda: during.append(CliRunner().invoke(app, ["models"]).exit_code))
        thread.start()
        thread.join()
    assert callable(during[0]) and during[-1] == 0
    assert signal.getsignal(signal.SIGTERM) is before
