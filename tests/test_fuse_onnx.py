"""ONNX files: branches become one convolution, and the file computes the same, or is not written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import randomise
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import Sketch, exported, operations, run, save
from torch import nn
from typer.testing import CliRunner
from zoo import ZOO

import reparam
from reparam import CheckpointError, ExportError, FuseError, SpecError, fuse_onnx
from reparam.cli import app

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Sum(nn.Module):
    """Branches that are added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x) for branch in self.branches)


class Function(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, forward: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = forward, nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.scale, *self.layers)


def with_norm(k: int | tuple[int, ...], channels: int = 8, ndim: int = 2, **options) -> nn.Sequential:
    size = (k,) * ndim if isinstance(k, int) else k
    padding = tuple(options.pop("dilation_of_pads", 1) * (one // 2) for one in size)
    return nn.Sequential(
        CONV[ndim](channels, channels, size, padding=padding, bias=False, **options), NORM[ndim](channels)
    )


def repvgg(ndim: int, **options) -> nn.Module:
    return Sum(with_norm(3, ndim=ndim, **options), with_norm(1, ndim=ndim, **options), NORM[ndim](8))


def dbb() -> nn.Module:
    """Padded once, before the 1x1, as an average pool that counts its padding is."""
    chain = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))
    pool = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, affine=True), nn.Identity())
    return Sum(with_norm(3), with_norm(1), chain, nn.Sequential(nn.AvgPool2d(3, 1, 1), *pool))


def chunks(x, scale, one, other):
    a, b = x.chunk(2, 1)
    return x[:, :] + torch.cat([one(a) + a, other(b)], 1) * scale


def lora(x, scale, base, down, up):
    return base(x) + 0.5 * up(down(x))


def stacked(x, scale, a, b):
    return torch.stack([a(x), scale * b(x), torch.zeros_like(x)]).sum(0) - x / 3


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "RepVGG": (lambda: repvgg(2), (2, 8, 9, 10)),
    "RepVGG of rows": (lambda: repvgg(1), (2, 8, 12)),
    "RepVGG of volumes": (lambda: repvgg(3), (2, 8, 5, 6, 7)),
    "RepVGG, grouped": (lambda: repvgg(2, groups=4), (2, 8, 9, 10)),
    "ACNet": (lambda: Sum(with_norm(3), with_norm((1, 3)), with_norm((3, 1))), (2, 8, 9, 10)),
    "DBB": (dbb, (2, 8, 9, 10)),
    "MobileOne": (lambda: Sum(*(with_norm(3, groups=8) for _ in range(4)), with_norm(1, groups=8)), (2, 8, 9, 10)),
    "chunks": (
        lambda: Function(chunks, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)),
        (2, 8, 9, 10),
    ),
    "LoRA": (
        lambda: Function(lora, nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3, bias=False), nn.Conv2d(2, 8, 1)),
        (2, 8, 9, 10),
    ),
    "expand and squeeze": (lambda: nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 8, 1)), (1, 8, 9, 10)),
    "a stack": (lambda: Function(stacked, with_norm(5), nn.Conv2d(8, 8, 3, padding=1)), (2, 8, 9, 10)),
}  # fmt: skip


def module_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    return randomise(make(), 0).eval(), torch.randn(shape) + 0.5


def distance(path: Path, module: nn.Module, x: torch.Tensor) -> float:
    """Of what ONNX Runtime makes of a file from what a module is in float64."""
    with torch.no_grad():
        wanted = module.double()(x.double()).numpy()
    module.float()
    (got,) = run(path, {"x": x.numpy()})
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


SPELLINGS = [(name, *exporter) for exporter in ((11, False), (18, True)) for name in ("RepVGG", "chunks", "a stack")]
"""What is exported of these differs most from one opset, and one exporter, to the other."""


@pytest.mark.parametrize(("name", "opset", "dynamo"), [*((name, 17, False) for name in MODULES), *SPELLINGS])
def test_what_torch_exports_unfused_becomes_one_convolution(name, opset, dynamo, tmp_path):
    module, x = module_of(name)
    source = exported(module, x, tmp_path / "model.onnx", opset=opset, dynamo=dynamo)
    assert len(operations(source)) > 2 or name == "expand and squeeze"
    report = fuse_onnx(source, tmp_path / "fused.onnx")
    assert operations(tmp_path / "fused.onnx") == ["Conv"]
    assert report.error <= 5e-6 and len(report.shapes) == 3 and len(report.regions) == 1
    for sizes in ((), (1,), (3, 2)):
        wider = torch.randn(*(n + more for n, more in zip(x.shape, [1, 0, *sizes, 0, 0, 0])))
        assert distance(tmp_path / "fused.onnx", module, wider) <= 5e-6
    onnx.checker.check_model(tmp_path / "fused.onnx", full_check=True)


LAYERS = ("Conv", "Gemm", "MatMul", "BatchNormalization", "AveragePool")
MORE_IN_ONNX = {"UniRepLKNet block": 6}
"""What of the zoo stays apart in a file, and its layers then: here a norm after a linear layer and a transpose."""


@pytest.mark.parametrize("name", [name for name in ZOO if name != "OmniShift"])  # which torch cannot export
def test_the_zoo_becomes_the_fewest_layers(name, tmp_path):
    animal = ZOO[name]
    module, x = animal.module().float(), animal.example().float()
    source = exported(module, x, tmp_path / "model.onnx", free=())
    target = tmp_path / "fused.onnx"
    try:
        assert fuse_onnx(source, target).error <= 5e-6
        assert distance(target, module, x) <= 5e-6
    except FuseError:
        target = source
    layers = sum(operation in LAYERS for operation in operations(target))
    assert layers == MORE_IN_ONNX.get(name, animal.fewest)


def branches(s: Sketch, x: str = "x", channels: int = 8) -> str:
    """3x3 and 1x1, both with a batch norm, and x."""
    three = s.norm(s.conv(x, channels, channels, bias=False), channels)
    one = s.norm(s.conv(x, channels, channels, 1, 1, bias=False), channels)
    return s.node("Add", [s.node("Add", [three, one]), x])


def of_branches(opset: int = 18, kind: int = TensorProto.FLOAT, dims=("n", 8, "h", "w")) -> tuple[Sketch, str]:
    s = Sketch(dims, opset, kind)
    return s, branches(s)


def fused(model: onnx.ModelProto, tmp_path: Path, **options) -> tuple[reparam.deploy.OnnxReport, Path]:
    """Saves a model, fuses it, and compares the two once more, on another input."""
    source, target = save(model, tmp_path / "model.onnx", **options), tmp_path / "fused.onnx"
    report = fuse_onnx(source, target)
    x = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value or 7 for dim in x.shape.dim]
    numbers = np.random.default_rng(5).standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(x.elem_type))
    tolerance = 5e-6 if x.elem_type == TensorProto.FLOAT else 1e-2
    for got, wanted in zip(run(target, {"x": numbers}), run(source, {"x": numbers}), strict=True):
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    return report, target


@pytest.mark.parametrize("opset", [11, 13, 15, 17, 19, 21])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_types_and_opsets_stay(opset, kind, tmp_path):
    s, y = of_branches(opset, kind)
    report, path = fused(s.model(y), tmp_path)
    model = onnx.load(path)
    assert operations(path) == ["Conv"] and model.opset_import[0].version == opset
    assert {tensor.data_type for tensor in model.graph.initializer} == {kind}
    assert [tensor.name for tensor in model.graph.initializer] == [f"{y}.weight", f"{y}.bias"]
    assert report.numbers == (8 * 8 * 10 + 8 * 8, 8 * 8 * 9 + 8) and report.nodes == (6, 1)


def test_weights_are_rounded_once(tmp_path):
    """Just above the middle of two halves, which the way over float32 would take for the middle, and round down."""
    s = Sketch(("n", 1, "h", "w"), 18, TensorProto.FLOAT16)

    def times(x: str, number: float) -> str:
        return s.node("Conv", [x, np.full((1, 1, 1, 1), number)])

    y = s.node("Sum", [times("x", 1.0), times("x", 2**-11), times(times("x", 2**-13), 2**-12)])
    fuse_onnx(save(s.model(y), tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    (weight,) = onnx.load(tmp_path / "fused.onnx").graph.initializer
    exact = 1 + 2**-11 + 2**-25
    assert np.float16(np.float32(exact)) == 1.0
    assert numpy_helper.to_array(weight).item() == 1 + 2**-10


def test_what_is_not_of_a_region_stays(tmp_path):
    s, y = of_branches()
    relu = s.node("Relu", [y])
    z = branches(s, relu)
    pooled = s.node("GlobalAveragePool", [s.node("Sigmoid", [z])])
    out = s.node("Mul", [z, pooled])
    model = s.model(out, y)
    model.graph.doc_string = model.graph.node[0].doc_string = "of a test"
    model.graph.value_info.append(helper.make_tensor_value_info(relu, TensorProto.FLOAT, ["n", 8, "h", "w"]))
    model.graph.value_info.append(helper.make_tensor_value_info("conv_0", TensorProto.FLOAT, ["n", 8, "h", "w"]))
    model.producer_name = "a test"
    model.metadata_props.append(onnx.StringStringEntryProto(key="stride", value="32"))
    report, path = fused(model, tmp_path)
    assert operations(path) == ["Conv", "Relu", "Conv", "Sigmoid", "GlobalAveragePool", "Mul"]
    assert [region.name for region in report.regions] == [y, z] and not report.left
    got = onnx.load(path)
    assert got.graph.input == model.graph.input and got.graph.output == model.graph.output
    assert (got.producer_name, got.graph.doc_string, got.ir_version) == ("a test", "of a test", 8)
    assert got.metadata_props == model.metadata_props
    assert [value.name for value in got.graph.value_info] == [relu]
    assert [node.name for node in got.graph.node[:2]] == [f"node of {y}", f"node of {relu}"]


def test_a_value_that_something_else_reads_stays(tmp_path):
    s = Sketch(("n", 8, "h", "w"))
    inner = s.norm(s.conv("x", 8, 8), 8)
    y = s.node("Add", [inner, s.conv("x", 8, 8, 1, 1)])
    report, path = fused(s.model(y, inner), tmp_path)  # the output inner
    assert sorted(operations(path)) in (["Conv", "Conv"], ["Add", "Conv", "Conv"]) and report.error < 5e-6


def test_what_a_subgraph_reads_stays(tmp_path):
    s, y = of_branches()
    first = s.nodes[1].output[0]
    branch = [
        helper.make_graph(
            [helper.make_node("Mul" if name == "then" else "Sub", [first, y], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    total = s.node("ReduceSum", ["x"], keepdims=0)
    above = s.node("Greater", [total, s.tensor(0.0)])
    out = s.node("If", [above], then_branch=branch[0], else_branch=branch[1])
    _, path = fused(s.model(out), tmp_path)
    assert first in {name for node in onnx.load(path).graph.node for name in node.output}
    assert operations(path).count("BatchNormalization") == 0


@pytest.mark.parametrize("external", [False, True])
def test_tensors_beside_the_file(external, tmp_path):
    s, y = of_branches()
    options = {"save_as_external_data": external, "location": "weights.bin", "size_threshold": 0}
    fused(s.model(y), tmp_path, **(options if external else {}))
    beside = tmp_path / "fused.onnx.data"
    assert beside.exists() == external
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        ["fused.onnx", "model.onnx", *(["fused.onnx.data", "weights.bin"] if external else [])]
    )


def test_a_file_beside_it_that_is_missing_or_would_be_overwritten(tmp_path):
    s, y = of_branches()
    source = save(s.model(y), tmp_path / "a.onnx", save_as_external_data=True, location="b.onnx.data", size_threshold=0)
    with pytest.raises(SpecError, match=r"b\.onnx\.data: it is .*b\.onnx\.data, which is one of its sources"):
        fuse_onnx(source, tmp_path / "b.onnx")
    (tmp_path / "b.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"the file with its tensors, .*b\.onnx\.data"):
        fuse_onnx(source, tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()


def test_old_files_in_which_every_tensor_is_an_input(tmp_path):
    s, y = of_branches(opset=11)
    model = s.model(y, ir_version=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    _, path = fused(model, tmp_path)
    assert operations(path) == ["Conv"]
    assert [value.name for value in onnx.load(path).graph.input] == ["x", f"{y}.weight", f"{y}.bias"]


def test_tensors_that_a_user_may_feed_are_no_constants(tmp_path):
    s, y = of_branches()
    model = s.model(y)
    fed = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(fed.name, fed.data_type, fed.dims))
    report, path = fused(model, tmp_path)  # the 1x1 and x are one convolution all the same
    assert operations(path).count("Conv") == 2 and report.numbers[1] > 0
    weight = np.random.default_rng(0).standard_normal(fed.dims).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((1, 8, 5, 6)).astype(np.float32)
    (wanted,), (got,) = (run(file, {"x": x, fed.name: weight}) for file in (tmp_path / "model.onnx", path))
    assert np.abs(got - wanted).max() <= 5e-6 * np.abs(wanted).max()
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer[1:]
    )
    with pytest.raises(
        FuseError, match=r"nothing to fuse in .*10 of its tensors \('tensor_0', \.\.\.\) are also inputs"
    ):
        fuse_onnx(save(model, tmp_path / "all.onnx"), tmp_path / "no.onnx")


def test_norms_that_stay_are_listed_with_the_reason(tmp_path):
    s, y = of_branches(opset=14)
    batch = s.node("Relu", [y])
    weight = [s.tensor(np.ones(8)) for _ in range(4)]
    trained, *_ = s.node("BatchNormalization", [batch, *weight], outputs=3, training_mode=1)
    alone = s.norm(s.node("Relu", [trained]), 8)
    report = fuse_onnx(save(s.model(alone), tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    assert dict(report.left) == {
        trained: "BatchNormalization is in training mode, and uses batch statistics",
        alone: "no layer next to it can absorb it",
    }
    assert f"left {trained}: BatchNormalization is in training mode" in str(report)


def test_sums_that_stay_are_listed_with_the_reason(tmp_path):
    """Branches that pad otherwise are no convolution together, and a 1x1 into few channels before a 3x3 is cheaper."""
    s, y = of_branches()
    z = s.node("Relu", [y])
    reflected = s.conv(s.node("Pad", [z, np.array([0, 0, 1, 1] * 2)], mode="reflect"), 8, 8, pads=(0, 0, 0, 0))
    apart = s.node("Relu", [s.node("Add", [s.conv(z, 8, 8), reflected])])
    few = s.conv(s.conv(apart, 8, 1, 1, 1, bias=False), 1, 8)
    report = fuse_onnx(save(s.model(few), tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    assert [region.name for region in report.regions] == [y]
    assert any("padding modes differ" in why for _, why in report.left)
    assert operations(tmp_path / "fused.onnx") == ["Conv", "Relu", "Pad", "Conv", "Conv", "Add", "Relu", "Conv", "Conv"]


def test_branches_that_only_their_borders_keep_apart_are_listed(tmp_path):
    s, y = of_branches()
    z = s.node("Relu", [y])
    padded = s.conv(s.conv(z, 8, 8, 1, 1), 8, 8)
    report = fuse_onnx(save(s.model(s.node("Add", [z, padded])), tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    assert [region.name for region in report.regions] == [y]
    assert [why for _, why in report.left if why.startswith("zero padding follows a bias, so the border would differ")]


def test_numbers_that_the_type_does_not_hold(tmp_path):
    s, y = of_branches(kind=TensorProto.FLOAT16)
    z = s.node("Relu", [y])
    large = s.node("Conv", [z, np.full((8, 8, 1, 1), 6e4)])
    small = s.node("Mul", [s.node("Mul", [large, s.numbers() * 0 + 300]), s.numbers() * 0 + 1e-4])
    again = s.node("Conv", [small, np.full((8, 8, 1, 1), 300.0)])
    report = fuse_onnx(save(s.model(again), tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    assert [region.name for region in report.regions] == [y]
    assert any("its weight has values that are not finite in float16" in why for _, why in report.left)


def test_weights_of_eight_bits_stay(tmp_path):
    s, y = of_branches()
    z = s.node("Relu", [y])
    weight = s.tensor(np.arange(64, dtype=np.int8).reshape(8, 8, 1, 1))
    s.tensors[weight] = s.tensors[weight].astype(np.int8)
    eight = s.node("DequantizeLinear", [weight, np.array(0.01)])
    out = s.norm(s.node("Conv", [z, eight]), 8)
    report, path = fused(s.model(out), tmp_path)
    assert operations(path) == ["Conv", "Relu", "DequantizeLinear", "Conv", "BatchNormalization"]
    assert [name for name, _ in report.left] == [out]


@pytest.mark.parametrize("pads", [(0, 0, -1, 0, 0, 0, 0, -2), (0, 0, 1, 1, 0, 0, 1, 1)])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_before_a_region(mode, pads, tmp_path):
    s = Sketch(("n", 4, "h", "w"))
    y = s.node("Pad", ["x", np.array(pads)], mode=mode)
    out = s.node("Add", [s.conv(y, 4, 4, pads=(0, 0, 0, 0)), s.conv(y, 4, 4, pads=(0, 0, 0, 0))])
    _, path = fused(s.model(out), tmp_path)
    assert operations(path) in (["Conv"], ["Pad", "Conv"])


def test_vectors_and_tokens(tmp_path):
    s = Sketch(("n", 6))
    y = s.node("Gemm", ["x", s.numbers(6, 5), s.numbers(5)])
    out = s.node("Add", [s.norm(y, 5), s.node("MatMul", ["x", s.numbers(6, 5)])])
    report, path = fused(s.model(out), tmp_path)
    assert operations(path) == ["Gemm"] and report.regions[0].after == "Gemm 6 -> 5"
    s = Sketch(("n", "t", 6))
    y = s.node("Add", [s.node("MatMul", ["x", s.numbers(6, 5)]), s.numbers(5)])
    low = s.node("MatMul", [s.node("MatMul", ["x", s.numbers(6, 2)]), s.numbers(2, 5)])
    report, path = fused(s.model(s.node("Add", [y, low])), tmp_path)
    assert operations(path) == ["MatMul", "Add"] and report.regions[0].after == "MatMul 6 -> 5"


def test_outputs_behind_a_choice_may_fall_otherwise(tmp_path):
    s, y = of_branches(dims=(1, 8, 6, 7))
    flat = s.node("Reshape", [y, np.array([-1])])
    values, index = s.node("TopK", [flat, np.array([5])], outputs=2)
    model = s.model(values, index)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    report = fuse_onnx(save(model, tmp_path / "model.onnx"), tmp_path / "fused.onnx")
    assert operations(tmp_path / "fused.onnx") == ["Conv", "Reshape", "TopK"]
    assert report.error == 0 and report.regions[0].error > 0


def broken(monkeypatch) -> None:
    """Makes every convolution a little wrong at the border."""
    from reparam.deploy._onnx import rewrite

    right = rewrite._of_channels

    def wrong(value, dims):
        value = right(value, dims)
        return value._replace(kernel=value.kernel._replace(bias=value.kernel.bias + 1e-3))

    monkeypatch.setattr(rewrite, "_of_channels", wrong)


def test_a_region_whose_layer_differs_stays(tmp_path, monkeypatch):
    broken(monkeypatch)
    s, y = of_branches()
    source = save(s.model(y), tmp_path / "model.onnx")
    (tmp_path / "fused.onnx").write_text("mine")
    with pytest.raises(FuseError, match=r"nothing to fuse in .*the layer of this region differs by \d\.\de-0\d of"):
        fuse_onnx(source, tmp_path / "fused.onnx")
    assert (tmp_path / "fused.onnx").read_text() == "mine"


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    from reparam.deploy._onnx import trial

    broken(monkeypatch)
    monkeypatch.setattr(trial, "region_error", lambda graph, one: 0.0)
    s, y = of_branches()
    source = save(s.model(y), tmp_path / "model.onnx")
    (tmp_path / "fused.onnx").write_text("mine")
    with pytest.raises(
        ExportError, match=r"the fused graph differs by \d\.\de-0[345] of .*inputs of \(\(1, 8, 9, 14\),\)"
    ):
        fuse_onnx(source, tmp_path / "fused.onnx")
    assert (tmp_path / "fused.onnx").read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["fused.onnx", "model.onnx"]


def test_a_graph_that_runs_on_nothing(tmp_path):
    s = Sketch(("n", "c", "h", "w"))
    out = s.norm(s.conv("x", 7, 8), 8)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run .*model\.onnx on any input that was tried: .*"):
        fuse_onnx(save(s.model(out), tmp_path / "model.onnx"), tmp_path / "fused.onnx")


def test_sizes_that_only_some_graphs_take(tmp_path):
    s, y = of_branches()
    blocks = s.node("SpaceToDepth", [y], blocksize=16)
    report, _ = fused_at_any(s.model(blocks), tmp_path)
    assert report.shapes[0] == ((1, 8, 32, 32),) and len(report.shapes) == 3


def fused_at_any(model: onnx.ModelProto, tmp_path: Path) -> tuple[reparam.deploy.OnnxReport, Path]:
    return fuse_onnx(save(model, tmp_path / "model.onnx"), tmp_path / "fused.onnx"), tmp_path / "fused.onnx"


def test_a_region_that_cannot_run_alone_stays(tmp_path, monkeypatch):
    from reparam.deploy._onnx import trial

    monkeypatch.setattr(trial, "_shapes", lambda graph, one: [(1, 3, 5, 5)])
    s, y = of_branches()
    with pytest.raises(FuseError, match="ONNX Runtime cannot run this region alone: .*INVALID_ARGUMENT"):
        fuse_onnx(save(s.model(y), tmp_path / "model.onnx"), tmp_path / "fused.onnx")


def test_a_fused_graph_that_does_not_run(tmp_path, monkeypatch):
    """Which no graph is, as far as is known: the layer of another number of channels."""
    from reparam.deploy._onnx import rewrite, trial

    right = rewrite._of_channels

    def narrow(value, dims):
        value = right(value, dims)
        return value._replace(kernel=value.kernel._replace(weight=value.kernel.weight[:, :3]))

    monkeypatch.setattr(rewrite, "_of_channels", narrow)
    monkeypatch.setattr(trial, "region_error", lambda graph, one: 0.0)
    s, y = of_branches()
    with pytest.raises(ExportError, match=r"ONNX Runtime fails in the fused graph, for inputs of \(\(1, 8, 9, 14\),\)"):
        fuse_onnx(save(s.model(y), tmp_path / "model.onnx"), tmp_path / "fused.onnx")


def test_a_fused_graph_that_onnx_refuses(tmp_path, monkeypatch):
    from reparam.deploy._onnx import rewrite

    s, y = of_branches()
    source = save(s.model(y, dims=("n", 8, "h", "w")), tmp_path / "model.onnx")
    right = rewrite._inputs_of_old_files

    def twice(model, gone, tensors):
        right(model, gone, tensors)
        model.graph.node.append(model.graph.node[0])

    monkeypatch.setattr(rewrite, "_inputs_of_old_files", twice)
    with pytest.raises(ExportError, match=r"the fused graph of .*model\.onnx is not a valid ONNX model: .*SSA"):
        fuse_onnx(source, tmp_path / "fused.onnx")


def test_operations_that_onnx_runtime_does_not_have(tmp_path):
    s, y = of_branches()
    s.nodes.append(helper.make_node("Unknown", [y], ["out"], domain="elsewhere"))
    model = s.model("out")
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot load .*model\.onnx: .*Unknown"):
        fuse_onnx(save(model, tmp_path / "model.onnx"), tmp_path / "fused.onnx")


def test_one_of_the_outputs_of_a_node(tmp_path):
    s = Sketch(("n", 8, "h", "w"))
    _, b = s.node("Split", [s.norm(s.conv("x", 8, 8), 8)], outputs=2, axis=1, num_outputs=2)
    _, path = fused(s.model(s.node("Relu", [b])), tmp_path)
    assert operations(path) == ["Conv", "Relu"]
    assert list(onnx.load(path).graph.initializer[0].dims) == [4, 8, 3, 3]


def test_inputs_that_are_no_tensors(tmp_path):
    s, y = of_branches()
    several = helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, None)
    out = s.node("Add", [y, s.node("SequenceAt", ["several", np.array(0)])])
    model = s.model(out)
    model.graph.input.append(several)
    with pytest.raises(ExportError, match=r"input 'several' is a seq\(tensor\(float\)\), so the fused graph cannot be"):
        fuse_onnx(save(model, tmp_path / "model.onnx"), tmp_path / "fused.onnx")


def test_several_inputs_of_several_kinds(tmp_path):
    s, y = of_branches()
    shift = helper.make_tensor_value_info("shift", TensorProto.INT64, ["n", 1, 1, 1])
    choose = helper.make_tensor_value_info("choose", TensorProto.BOOL, [])
    moved = s.node("Add", [y, s.node("Cast", ["shift"], to=TensorProto.FLOAT)])
    model = s.model(s.node("Where", ["choose", moved, y]))
    model.graph.input.extend([shift, choose])
    report, path = fused_at_any(model, tmp_path)
    assert operations(path) == ["Conv", "Cast", "Add", "Where"] and report.shapes[1] == (
        (2, 8, 16, 24),
        (2, 1, 1, 1),
        (),
    )


def test_uneven_padding_needs_no_more_taps(tmp_path):
    """As files that come from TensorFlow have at a stride of 2."""
    s = Sketch((1, 8, 10, 12))
    y = s.norm(s.conv("x", 8, 8, auto_pad="SAME_UPPER", strides=(2, 2)), 8)
    report, path = fused(s.model(y), tmp_path)
    (conv,) = onnx.load(path).graph.node
    attributes = {one.name: helper.get_attribute_value(one) for one in conv.attribute}
    assert (attributes["kernel_shape"], attributes["pads"]) == ([3, 3], [0, 0, 1, 1])
    assert report.regions[0].after == "Conv 8 -> 8, 3x3, stride=(2, 2), pads=((0, 1), (0, 1))"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"no model at all", r"cannot read .*model\.onnx: it is not an ONNX model"),
        (b"", r"cannot read .*model\.onnx: it is not an ONNX model"),
        (
            Sketch((1,), opset=10).model("x").SerializeToString(),
            r"model\.onnx has opset 10, but only 11 to \d\d can be read",
        ),
        (
            Sketch((1,), opset=99).model("x").SerializeToString(),
            r"model\.onnx has opset 99, but only 11 to \d\d can be read",
        ),
        (Sketch((1,)).model("x").SerializeToString(), "nothing to fuse in .*no region of its 0 nodes is one layer"),
    ],
)
def test_files_that_are_not_fused(content, match, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises((CheckpointError, FuseError), match=match):
        fuse_onnx(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    assert not (tmp_path / "fused.onnx").exists()


def test_places_that_are_not_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        fuse_onnx(tmp_path / "model.onnx", tmp_path / "fused.onnx")
    s, y = of_branches()
    source = save(s.model(y), tmp_path / "model.onnx")
    before = source.read_bytes()
    with pytest.raises(
        SpecError, match=r"cannot write .*model\.onnx: it is .*model\.onnx, which is one of its sources"
    ):
        fuse_onnx(source, source)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        fuse_onnx(source, tmp_path / "nowhere" / "fused.onnx")
    assert source.read_bytes() == before


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("reparam.deploy._fuse_onnx.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs onnx and onnxruntime: pip install 'reparam\[onnx\]'"):
        fuse_onnx(tmp_path / "model.onnx", tmp_path / "fused.onnx")


def test_the_command(tmp_path):
    s, y = of_branches()
    source, target = save(s.model(y), tmp_path / "model.onnx"), tmp_path / "fused.onnx"
    result = CliRunner().invoke(app, ["fuse", str(source), str(target)])
    assert result.exit_code == 0 and operations(target) == ["Conv"]
    assert re.search(
        rf"^{y} +2 Conv, 2 BatchNormalization, 2 Add +Conv 8 -> 8, 3x3 +672 +576 +\de-0\d$", result.output, re.M
    )
    assert "6 nodes and 704 values before, 1 and 584 after; the outputs differ by" in result.output
    refused = CliRunner().invoke(app, ["fuse", str(source), str(target)])
    assert refused.exit_code == 1 and "is there already" in refused.output
    other = source.rename(tmp_path / "model.bin")  # known by what is in it
    result = CliRunner().invoke(app, ["fuse", str(other), str(target), "--overwrite", "--json"])
    report = json.loads(result.output)
    assert report["nodes"] == [6, 1] and report["regions"][0]["after"] == "Conv 8 -> 8, 3x3"
    result = CliRunner().invoke(app, ["fuse", str(other), str(target), "--overwrite", "--eps", "1e-3", "--act", "relu"])
    assert result.exit_code == 1 and "which needs no options; leave out eps, act" in result.output.replace("\n", " ")
    result = CliRunner().invoke(app, ["fuse", str(tmp_path / "no.onnx"), str(target), "--overwrite"])
    assert result.exit_code == 1 and "no.onnx" in result.output
