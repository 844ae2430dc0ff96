"""Engines side by side: only those are timed that agree, and one that cannot run does not stop the others."""

import numpy as np
import pytest
import torch
from helpers import made
from torch import nn
from typer.testing import CliRunner

import reparam.bench._inference as inference
from reparam import ExportError, SpecError, quantize
from reparam.bench import bench_inference
from reparam.cli import app


def engines_that(**outcomes):
    """A `make_engine` whose engines do to the right output what is said."""

    def make_engine(net, name, threads):
        outcome = outcomes[name]
        if isinstance(outcome, Exception):
            raise outcome
        return lambda x: outcome(net(torch.from_numpy(x)).numpy())

    return make_engine


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return made("repsr_m1c4_x2")


@pytest.mark.parametrize(
    ("name", "outcome", "match"),
    [
        ("openvino", lambda y: y + 1e-3 * np.abs(y).max(), r"openvino \(fused\) differs by 1.0e-03 .* at most 1e-04"),
        ("openvino-bf16", lambda y: 1.2 * y, r"openvino-bf16 \(fused\) differs by 2.0e-01 .* at most 5e-02"),
        ("openvino", lambda y: y * np.nan, "differs by nan"),
        ("ncnn", lambda y: y[:, :, 1:], r"ncnn \(fused\) returns \(1, 3, 17, 24\), but torch returns \(1, 3, 18, 24\)"),
    ],
)
def test_an_engine_with_another_output_is_not_timed(net, name, outcome, match, monkeypatch):
    monkeypatch.setattr(inference, "make_engine", engines_that(**{name: outcome}))
    monkeypatch.setattr(inference, "race", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(ExportError, match=match):
        bench_inference(net, 9, 12, engines=[name], rounds=1)


def test_bfloat16_may_round(net, monkeypatch):
    monkeypatch.setattr(inference, "make_engine", engines_that(**{"openvino-bf16": lambda y: 1.01 * y}))
    row = bench_inference(net, 9, 12, engines=["openvino-bf16"], rounds=1).rows[-1]
    assert row.error == pytest.approx(0.01, rel=1e-3)
    assert row.megapixels_per_s == pytest.approx(18 * 24 / row.latency_ms / 1e3)


def test_an_engine_that_fails_is_named_and_the_others_are_timed(net, monkeypatch):
    outcomes = {"ncnn": lambda y: y, "torch-compile": RuntimeError("no compiler\nat all"), "openvino": MemoryError()}
    monkeypatch.setattr(inference, "make_engine", engines_that(**outcomes))
    monkeypatch.setattr(inference, "installed_engines", lambda: list(outcomes))
    report = bench_inference(net, 9, 12, rounds=1)
    assert report.failed == {"torch-compile": "no compiler", "openvino": "MemoryError"}
    assert [row.engine for row in report.rows] == ["torch-eager"] * 3 + ["ncnn"]
    command = ["bench", "infer", "plain_m1c4_x2", "--height", "9", "--width", "12", "--rounds", "1"]
    assert (
        "torch-compile is installed but cannot run this network: no compiler" in CliRunner().invoke(app, command).output
    )


def test_a_file_is_run_by_its_engines(net, tmp_path, monkeypatch):
    file = tmp_path / "int8.xml"
    quantize(net, file, [np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)], weight_bits=8)
    report = bench_inference(net, 9, 12, engines=["torch", "openvino"], files=[file], rounds=1)
    assert [(row.graph, row.engine) for row in report.rows[-2:]] == [("fused", "openvino"), ("int8.xml", "openvino")]
    assert 1e-4 < report.rows[-1].error < 0.5
    command = ["bench", "infer", "plain_m1c4_x2", "--height", "9", "--width", "12", "--file", str(file)]
    monkeypatch.setattr(inference, "open_engine", lambda *_: lambda x: np.zeros((1, 3, 18, 24), np.float32))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "openvino (int8.xml) differs by 1.0e+00" in result.output
    with pytest.raises(
        SpecError, match="files of type .onnx, .xml, .param, .pt2, .tflite, .pte can be measured, but got net.pth"
    ):
        bench_inference(net, 9, 12, engines=["torch"], files=[tmp_path / "net.pth"], rounds=1)


def test_a_network_that_does_not_say_its_input():
    with pytest.raises(SpecError, match="Conv2d does not say what its input is"):
        bench_inference(nn.Conv2d(3, 3, 3), 9, 12)
