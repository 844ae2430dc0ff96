"""What engines keep is never needed, and the threads that they use are theirs alone."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import made
from torch import nn
from typer.testing import CliRunner

import reparam.deploy._engines as engines
from reparam import SpecError, Upscaler, export
from reparam.bench import bench_inference
from reparam.cli import app
from reparam.deploy._cache import cache_folder, cached, keep
from reparam.deploy._exporter import holds
from reparam.deploy._receptive import locality
from reparam.deploy._threads import torch_threads
from reparam.sr._upscale.memory import ran_out

NET = made("repsr_m1c4_x2")
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)


# The cache


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nowhere", "file"])
def test_a_place_that_cannot_be_written_to_keeps_nothing(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / place))  # an absolute place stays what it is
    keep("a", lambda file: file.write_text("all"))
    assert cached("a") is None and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_needs_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(engines, "_seconds", lambda engine, colors: engine(np.zeros((1, 3, 4, 4), np.float32)).sum())
    assert np.abs(Upscaler(NET)(PIXELS).astype(int) - Upscaler(NET, engine="torch")(PIXELS)).max() <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_user_without_a_home(tmp_path):
    code = "from reparam.deploy._cache import *; print(cache_folder()); keep('a', lambda file: file.touch())"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "TORCH_HOME")}
    user = "import os, pwd; pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError()); "
    done = subprocess.run(
        [sys.executable, "-c", user + code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'"torch"', b"{}", b'{"engine": "of old"}', b'{"engine": ["torch"]}']
)
def test_a_record_that_is_none_is_made_anew(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "make_engine", lambda net, name, threads: name)
    monkeypatch.setattr(engines, "_seconds", lambda engine, colors: {"onnxruntime": 1.0}.get(engine, 2.0))
    assert engines.fastest_engine(NET, 3) == "onnxruntime"
    (record,) = cache_folder().iterdir()
    record.write_bytes(content)
    assert engines.fastest_engine(NET, 3) == "onnxruntime"
    assert json.loads(record.read_text())["engine"] == "onnxruntime"


def test_what_is_kept_is_whole_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    keep("a", lambda file: file.write_text("all"))
    assert cached("a").read_text() == "all" and cached("b") is None
    with pytest.raises(ZeroDivisionError):
        keep("a", lambda file: file.write_text("half") and 1 / 0)
    assert cached("a").read_text() == "all" and len(list(cache_folder().iterdir())) == 1


def test_an_engine_that_cannot_run_a_network_is_not_the_fastest(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(net, engine, threads):
        if engine != failing:
            return engine
        raise RuntimeError("so it is")

    monkeypatch.setattr(engines, "make_engine", refuse)
    monkeypatch.setattr(
        engines, "_seconds", lambda engine, colors: {"onnxruntime": 1.0, "openvino": 2.0}.get(engine, 3.0)
    )
    failing = "onnxruntime"
    assert engines.fastest_engine(NET, 3, threads=1) == "openvino"
    failing = "torch"  # what it cannot do, the network cannot
    with pytest.raises(RuntimeError, match="so it is"):
        engines.fastest_engine(NET, 3, threads=2)


class Log:
    """Something that cannot be copied, as a lock, an open file or a connection cannot."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), 0

    def note(self, module, args, y):
        with self.lock:
            self.seen += 1


def test_a_hook_that_cannot_be_copied_is_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    net, log = made("plain_m1c4_x2"), Log()
    net.body[0].register_forward_hook(log.note)
    x = np.random.default_rng(0).random((1, 3, 8, 9), dtype=np.float32)
    wanted = net(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(engines.make_engine(net, "torch")(x), wanted, atol=1e-6)
    assert locality(net, 3) == (3, 1)
    export(net, tmp_path / "net.pt2")
    assert holds(tmp_path / "net.pt2", net)
    report = bench_inference(net, 8, 9, engines=["torch"], rounds=1)
    assert [row.graph for row in report.rows] == ["fused", "fused"] and log.seen > 1


def test_a_network_without_numbers_of_its_own_runs():
    x = np.random.default_rng(0).random((1, 4, 3, 5), dtype=np.float32)
    net = nn.PixelShuffle(2)
    assert engines.fastest_engine(net, 4, threads=1) in engines.installed_engines()
    assert np.array_equal(engines.make_engine(net, "torch")(x), net(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(("suffix", "engine"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
def test_a_file_that_is_no_network(suffix, engine, tmp_path):
    (tmp_path / f"a{suffix}").write_text("no network")
    with pytest.raises(SpecError, match=f"{engine} cannot read .*a{suffix} as a network in {suffix[1:]}: "):
        engines.open_engine(tmp_path / f"a{suffix}", engine)


# Threads


def in_a_new_thread(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    return found[0]


def counts() -> tuple[int, int]:
    """Of this thread, and of one that begins."""
    return torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_count_is_of_the_thread_that_asks(count):
    before = counts()
    with torch_threads(count):
        assert counts() == (count or before[0], before[1])
    assert counts() == before
    with pytest.raises(ZeroDivisionError), torch_threads(count):
        raise ZeroDivisionError
    assert counts() == before


def test_a_count_of_a_thread_is_not_that_of_new_ones():
    """As where a worker has one thread, and enlarges images."""

    def work():
        with torch_threads(5):
            pass
        with torch_threads(3):
            Upscaler(NET, engine="torch")(PIXELS)
            return counts()

    before = counts()
    assert in_a_new_thread(work) == (3, before[1])
    assert counts() == before


@pytest.mark.parametrize("threads", [0, 3])
def test_counts_are_back_after_images_and_measurements(threads):
    before, seen = counts(), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        Upscaler(NET, engine="torch", threads=threads, tile=4)(PIXELS)
        bench_inference(NET, 5, 6, engines=["torch"], rounds=1, threads=threads)
    finally:
        hook.remove()
    assert set(seen[-50:]) == {threads or before[0]}
    assert counts() == before


@pytest.mark.parametrize("count", [-1, 1025, 100_000])
def test_counts_that_no_machine_has_a_use_for(count):
    match = f"threads must be .*0.*, but got .*threads={count}"
    with pytest.raises(SpecError, match=match), torch_threads(count):
        pytest.fail("it went on")
    for engine in ("torch", "onnxruntime"):
        with pytest.raises(SpecError, match=match):
            engines.make_engine(NET, engine, count)
    with pytest.raises(SpecError, match=match):
        engines.open_engine(Path("a.onnx"), "onnxruntime", count)


# The command line


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "repsr_m4c16_x2", "--size", "100000000"),
        ("verify", "repsr_m4c16_x2", "--size", "0"),
        ("bench", "infer", "--height", "1000000"),
        ("bench", "infer", "--width", "1000000"),
        ("bench", "--batch", "1000000"),
        ("bench", "--size", "1000000"),
        ("bench", "--channels", "1000000"),
        ("upscale", "a.png", "-o", "out", "--tile", "-1"),
        ("demo", "--seed", "-1"),
        ("demo", "--seed", str(2**63)),
    ],
)
def test_options_have_bounds(arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 2 and f"Invalid value for '{arguments[-2]}'" in result.output


@pytest.mark.parametrize("threads", ["100000", "-1"])
@pytest.mark.parametrize("command", [("bench",), ("bench", "infer"), ("upscale", "a.png", "-o", "out")])
def test_threads_have_the_bounds_of_the_library(command, threads):
    result = CliRunner().invoke(app, [*command, "--threads", threads])
    assert (
        result.exit_code == 1 and result.stderr.strip().startswith("error: ") and f"threads={threads}" in result.stderr
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nat 3"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
@pytest.mark.parametrize(
    ("command", "place"),
    [
        (("verify", "repsr_m4c16_x2"), "fusing.verify"),
        (("bench", "infer"), "bench.bench_inference"),
        (("bench",), "bench.bench_blocks"),
        (("upscale", "a.png", "-o", "out"), "sr.Upscaler"),
    ],
)
def test_memory_that_runs_out_is_a_line(command, place, error, monkeypatch):
    def fail(*_, **__):
        raise error

    assert ran_out(error)
    monkeypatch.setattr(f"reparam.{place}", fail)
    result = CliRunner().invoke(app, list(command))
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = result.stderr.split("\n")[-2:-1]  # after what is left of a bar
    assert (
        line.startswith("error: not enough memory; use smaller images or tiles")
        and not result.stderr[: -len(line) - 1].strip()
    )


def test_a_mistake_in_here_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("reparam.files.inspect_file", lambda *_, **__: [][0])
    assert isinstance(CliRunner().invoke(app, ["inspect", "repsr_m4c16_x2"]).exception, IndexError)

    def fail(*_, **__):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("reparam.files.inspect_file", fail)
    assert isinstance(CliRunner().invoke(app, ["inspect", "repsr_m4c16_x2"]).exception, RuntimeError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("fuse", "repsr_m4c61_x2", "out.pth"),
        ("inspect", "repsr_m4c61_x2"),
        ("verify", "repsr_m4c61_x2"),
        ("export", "repsr_m4c61_x2", "out.onnx"),
        ("quantize", "repsr_m4c61_x2", "out.onnx", "--images", "."),
        ("upscale", "a.png", "-o", "out", "--model", "repsr_m4c61_x2"),
        ("bench", "infer", "repsr_m4c61_y2"),
        ("models", "repsr_m4c61_x2", "--pretrained"),
    ],
)
def test_a_mistyped_name_lists_what_there_is(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
    assert "repsr_m4c61" in result.stderr and "m4c16" in result.stderr
    assert list(tmp_path.iterdir()) == []


OPTIONS = {
    ("fuse", "repsr_m4c16_x2", "out.pth", "--wrapper", "w"): ("files.fuse_file", {"wrapper": "w"}),
    ("inspect", "repsr_m4c16_x2", "--wrapper", "w"): ("files.inspect_file", {"wrapper": "w"}),
    ("export", "repsr_m4c16_x2", "out.pt2", "--wrapper", "w", "--act", "a"): (
        "files.load_checkpoint",
        {"wrapper": "w", "act": "a"},
    ),
    ("verify", "repsr_m4c16_x2", "--wrapper", "w", "--act", "a"): (
        "files.load_checkpoint",
        {"wrapper": "w", "act": "a"},
    ),
    ("upscale", "a.png", "-o", "out", "--tile", "7", "--threads", "3", "--engine", "e"): (
        "sr.Upscaler",
        {"tile": 7, "threads": 3, "engine": "e"},
    ),
    ("quantize", "repsr_m4c16_x2", "out.onnx", "--images", ".", "--targets", "t", "--tile", "7", "--per-tensor"): (
        "sr.quantize",
        {"tile": 7, "targets": Path("t"), "per_channel": False},
    ),
    ("bench", "infer", "--threads", "3", "--rounds", "4"): ("bench.bench_inference", {"threads": 3, "rounds": 4}),
}


@pytest.mark.parametrize("command", OPTIONS, ids=lambda command: command[0])
def test_options_reach_the_library(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, wanted = OPTIONS[command]

    def record(*_, **given):
        assert wanted.items() <= given.items(), given
        raise SpecError("enough")

    monkeypatch.setattr(f"reparam.{place}", record)
    result = CliRunner().invoke(app, list(command))
    assert result.stderr.strip() == "error: enough", result.exception


def test_bench_runs_on_the_threads_that_were_asked_for(monkeypatch):
    before, seen = counts(), []
    monkeypatch.setattr("reparam.bench.bench_blocks", lambda *_, **__: seen.append(torch.get_num_threads()) or [])
    monkeypatch.setattr("reparam.bench.bench_training", lambda **_: [])
    result = CliRunner().invoke(app, ["bench", "--threads", "3"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "3 threads" in " ".join(result.output.split())
    assert set(seen) == {3} and counts() == before
