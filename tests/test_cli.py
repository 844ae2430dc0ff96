"""The command line as a user types it."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import reparam
from reparam import create_model
from reparam.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_version():
    assert run("--version").output.strip() == f"reparam {reparam.__version__}"


def test_the_demo_in_small(tmp_path: Path):
    result = run("demo", "--steps", "12", "--out", str(tmp_path / "new" / "demo"))
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.output.splitlines() if line.startswith("│")}
    bicubic, train_graph, fused = map(float, re.findall(r"\d+\.\d+", rows["PSNR on coffee, held out (dB)"]))
    assert bicubic == pytest.approx(30.60, abs=0.05)
    assert train_graph == fused
    assert "52,568" in rows["parameters"] and "11,548" in rows["parameters"]
    error, floor = (
        float(rows[name].split("│")[4]) for name in ("max |fused - train graph|", "rounding alone, float32")
    )
    assert error <= 10 * floor < 1e-4
    files = sorted(path.name for path in (tmp_path / "new" / "demo").iterdir())
    assert files == ["comparison.png", "repsr_m4c16_x2.safetensors"]
    plain = create_model("plain_m4c16_x2")
    plain.load_state_dict(load_file(tmp_path / "new" / "demo" / files[1]), strict=True)
    assert plain(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)


def test_bench_prints_ratios_for_every_block_and_phase():
    small = ("bench", "--channels", "3", "--batch", "2", "--size", "8", "--rounds", "1")
    result = run(*small, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ways = {(row["block"], row["phase"], row["mode"]) for row in found["blocks"]}
    assert ("RepSRBlock", "batch statistics", "folded") in ways and ("ECB", "no BN", "branches") in ways
    assert len(ways) == 10
    assert all(row["step"] > 0 and row["fuse_error"] < 1e-5 for row in found["blocks"])
    assert [row["mode"] for row in found["training"]] == ["folded", "branches"]
    table = run(*small)
    assert "RepVGGBlock" in table.output and "repsr_m4c16_x2" in table.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["demo", "--steps", "3"], "Invalid value for '--steps'"),
        (["demo", "--out", __file__], "is a file"),
        (["bench", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["train"], "No such command 'train'"),
    ],
)
def test_bad_input(arguments, match):
    result = run(*arguments)
    assert result.exit_code == 2
    assert match in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def test_the_demo_without_its_packages(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.delitem(sys.modules, "reparam.demo", raising=False)
    result = run("demo")
    assert result.exit_code == 1
    assert "pip install 'reparam[demo]'" in result.output
