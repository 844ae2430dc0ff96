"""Files of RTMoSR, FlexNet, RepRLFN and UniRepLKNet, whose blocks are larger than one branch: keys of their codes, and
the outputs by torch functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, assert_close_everywhere
from safetensors.torch import save_file
from torch import Tensor

from reparam import CheckpointError, fuse_file, fuse_state_dict, inspect_file

StateDict = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]]) -> StateDict:
    """Random tensors of these shapes, in float64; variances are positive."""
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
    return {key: tensor.abs() + 0.1 if key.endswith("running_var") else tensor for key, tensor in tensors.items()}


def photo(channels: int) -> Tensor:
    x = torch.randn(2, channels, 15, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[..., 0, :], x[..., -1] = 3.0, -2.0
    return x


def conv(sd: StateDict, name: str, x: Tensor, **geometry) -> Tensor:
    return F.conv2d(x, sd[f"{name}.weight"], sd.get(f"{name}.bias"), **geometry)


def norm(sd: StateDict, name: str, x: Tensor) -> Tensor:
    statistics = sd[f"{name}.running_mean"], sd[f"{name}.running_var"]
    return F.batch_norm(x, *statistics, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-5)


def bn(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}


def rtmosr(inside: int = 3, outside: int = 5) -> StateDict:
    """Of a RepConv; what it keeps of its last call of `eval()` is anything."""
    return drawn(
        {
            "alpha": (3,),
            **{"conv1.k0": (10, inside, 1, 1), "conv1.b0": (10,), "conv1.k1": (outside, 10, 3, 3)},
            **{"conv1.b1": (outside,), "conv2.weight": (outside, inside, 3, 3), "conv2.bias": (outside,)},
            **{"conv3.sk.weight": (outside, inside, 1, 1), "conv3.sk.bias": (outside,)},
            **{"conv3.conv.0.weight": (2 * inside, inside, 1, 1), "conv3.conv.0.bias": (2 * inside,)},
            **{"conv3.conv.1.weight": (10, 2 * inside, 3, 3), "conv3.conv.1.bias": (10,)},
            **{"conv3.conv.2.weight": (outside, 10, 1, 1), "conv3.conv.2.bias": (outside,)},
            **{"conv3.eval_conv.weight": (outside, inside, 3, 3), "conv3.eval_conv.bias": (outside,)},
            **{"conv_3x3_rep.weight": (outside, inside, 3, 3), "conv_3x3_rep.bias": (outside,)},
        }
    )


def test_repconv_of_rtmosr_with_all_its_terms():
    sd, x = rtmosr(), photo(3)
    fused = fuse_state_dict(sd)
    y = F.conv2d(F.pad(x, (1, 1, 1, 1)), sd["conv1.k0"], sd["conv1.b0"])  # its bias in the ring
    expected = sd["alpha"][0] * F.conv2d(y, sd["conv1.k1"], sd["conv1.b1"])
    expected += sd["alpha"][1] * conv(sd, "conv2", x, padding=1)
    y = conv(sd, "conv3.conv.1", conv(sd, "conv3.conv.0", F.pad(x, (1, 1, 1, 1))))
    expected += sd["alpha"][2] * (conv(sd, "conv3.conv.2", y) + conv(sd, "conv3.sk", x))
    assert_close_everywhere(conv(fused, "conv_3x3_rep", x, padding=1), expected)
    kept = sd.keys() - {"conv_3x3_rep.weight", "conv_3x3_rep.bias"}
    assert fused.keys() == sd.keys() and all(fused[key] is sd[key] for key in kept)


@pytest.mark.parametrize("shared", [True, False])
def test_omnishift_with_weights_per_channel_and_without(shared):
    sizes = {"conv1x1": 1, "conv3x3": 3, "conv5x5": 5, "conv5x5_reparam": 5}
    shapes = {f"{name}.weight": (4, 1, size, size) for name, size in sizes.items()}
    shapes |= {"alpha": (4,)} if shared else {f"alpha{term}": (1, 4, 1, 1) for term in range(1, 5)}
    shapes |= {} if shared else {f"{name}.bias": (4,) for name in sizes}
    sd, x = drawn(shapes), photo(4)
    fused = fuse_state_dict(sd)
    alphas = sd["alpha"] if shared else [sd[f"alpha{term}"] for term in range(1, 5)]
    expected = alphas[0] * x
    for alpha, (name, size) in zip(alphas[1:], sizes.items()):
        expected = expected + alpha * conv(sd, name, x, padding=size // 2, groups=4)
    assert fused.keys() == sd.keys()
    assert_close_everywhere(conv(fused, "conv5x5_reparam", x, padding=2, groups=4), expected, 2)


def test_repblock_of_reprlfn_adds_its_input():
    sizes = {"3x3": (3, 3), "3x1": (3, 1), "1x3": (1, 3), "1x1": (1, 1)}
    shapes = {f"block_1.c1_r.rbr_{taps}_branch.weight": (4, 4, *size) for taps, size in sizes.items()}
    shapes |= {f"block_1.c1_r.rbr_{taps}_branch.bias": (4,) for taps in sizes}
    sd, x = drawn({**shapes, "block_1.c5.weight": (4, 4, 1, 1)}), photo(4)
    fused = fuse_state_dict(sd)
    expected = x.clone()
    for taps, (height, width) in sizes.items():
        expected += conv(sd, f"block_1.c1_r.rbr_{taps}_branch", x, padding=(height // 2, width // 2))
    assert fused.keys() == {f"block_1.c1_r.rbr_reparam.{key}" for key in ("weight", "bias")} | {"block_1.c5.weight"}
    assert_close_everywhere(conv(fused, "block_1.c1_r.rbr_reparam", x, padding=1), expected)


SMALL = {(5, 1): 5, (3, 2): 3, (3, 3): 3}
"""The small kernels of a 7x7: size and dilation."""


def unireplknet(size: int, *, gamma: bool = True, beta: bool = True) -> StateDict:
    """Of a block of 4 channels with a squeeze-and-excite and a GRN, under the name of a stage."""
    shapes = {"gamma": (4,)} if gamma else {}
    if size > 5:
        shapes |= {"dwconv.lk_origin.weight": (4, 1, size, size), **bn("dwconv.origin_bn", 4)}
        for k, rate in SMALL:
            shapes |= {f"dwconv.dil_conv_k{k}_{rate}.weight": (4, 1, k, k), **bn(f"dwconv.dil_bn_k{k}_{rate}", 4)}
    else:
        shapes["dwconv.weight"] = (4, 1, size, size)
    shapes |= {**bn("norm", 4), "se.down.weight": (1, 4, 1, 1), "se.down.bias": (1,), "se.up.weight": (4, 1, 1, 1)}
    shapes |= {"se.up.bias": (4,), "pwconv1.1.weight": (16, 4), "pwconv1.1.bias": (16,), "act.1.gamma": (1, 1, 1, 16)}
    shapes |= {"act.1.beta": (1, 1, 1, 16)} if beta else {}
    shapes |= {"pwconv2.0.weight": (4, 16), **bn("pwconv2.2", 4)}
    return {f"stages.1.0.{key}": tensor for key, tensor in drawn(shapes).items()}


def depthwise_of(sd: StateDict, x: Tensor) -> Tensor:
    """The convolutions of a block with their batch norms, and the one after their sum."""
    name = "stages.1.0.dwconv"
    if f"{name}.weight" in sd:
        y = conv(sd, name, x, padding=sd[f"{name}.weight"].shape[-1] // 2, groups=4)
    else:
        y = norm(sd, f"{name}.origin_bn", conv(sd, f"{name}.lk_origin", x, padding=3, groups=4))
        for k, rate in SMALL:
            geometry = {"padding": rate * (k - 1) // 2, "dilation": rate, "groups": 4}
            small = conv(sd, f"{name}.dil_conv_k{k}_{rate}", x, **geometry)
            y = y + norm(sd, f"{name}.dil_bn_k{k}_{rate}", small)
    return norm(sd, "stages.1.0.norm", y)


@pytest.mark.parametrize(("size", "place"), [(7, "dwconv.lk_origin"), (3, "dwconv"), (5, "dwconv")])
@pytest.mark.parametrize(("gamma", "beta"), [(True, True), (False, True), (True, False)])
def test_both_convolutions_of_a_block_of_unireplknet(size, place, gamma, beta):
    sd, x = unireplknet(size, gamma=gamma, beta=beta), photo(4)
    fused = fuse_state_dict(sd)
    assert_close_everywhere(conv(fused, f"stages.1.0.{place}", x, padding=size // 2, groups=4), depthwise_of(sd, x), 3)
    hidden = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shifted = hidden + (sd["stages.1.0.act.1.beta"].flatten() if beta else 0)
    expected = norm(sd, "stages.1.0.pwconv2.2", (shifted @ sd["stages.1.0.pwconv2.0.weight"].T).mT).mT
    expected = expected * (sd["stages.1.0.gamma"] if gamma else 1)
    weight, bias = (fused[f"stages.1.0.pwconv2.0.{key}"] for key in ("weight", "bias"))
    assert weight.shape == (4, 16)
    assert_close(F.linear(hidden, weight, bias), expected)
    left = {key for key in sd if ".se." in key or ".pwconv1." in key or key.endswith("act.1.gamma")}
    written = {f"stages.1.0.{name}.{key}" for name in (place, "pwconv2.0") for key in ("weight", "bias")}
    assert fused.keys() == left | written and all(fused[key] is sd[key] for key in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_checked_block_by_block(dtype, tmp_path):
    sd = {f"a.{key}": tensor for key, tensor in rtmosr().items()}
    sd |= unireplknet(7) | {key.replace("1.0", "0.1"): tensor for key, tensor in unireplknet(3).items()}
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in sd.items()}, tmp_path / "net.safetensors")
    found = inspect_file(tmp_path / "net.safetensors")
    kinds = ["RTMoSR's RepConv", "UniRepLKNet's block", "UniRepLKNet's linear layer", "UniRepLKNet's small block"]
    assert found.blocks == dict(zip(kinds, (1, 1, 2, 1))) and not found.problems
    report = fuse_file(tmp_path / "net.safetensors", tmp_path / "plain.safetensors")
    assert [row.name for row in report.blocks] == ["a", *["stages.1.0"] * 2, *["stages.0.1"] * 2]
    assert all(0 < row.error <= 100 * torch.finfo(dtype).eps for row in report.blocks)


@pytest.mark.parametrize(
    ("sd", "key", "match"),
    [
        (rtmosr, "conv3.extra.weight", "keys of RTMoSR's RepConv and others: 'conv3.extra.weight'"),
        (lambda: unireplknet(7), "stages.1.0.dwconv.extra", "keys of UniRepLKNet's block and others: .*dwconv.extra"),
        (lambda: unireplknet(3), "stages.1.0.pwconv2.3.weight", "small block and others: .*pwconv2.3.weight"),
    ],
)
def test_a_tensor_that_nobody_accounts_for_is_refused(sd, key, match):
    with pytest.raises(CheckpointError, match=match):
        fuse_state_dict({**sd(), key: torch.rand(4)})


@pytest.mark.parametrize(
    ("sd", "key", "match"),
    [
        (rtmosr, "conv1.b1", r"RTMoSR's RepConv.*'conv1.b1' of shape \(5,\) is missing"),
        (
            lambda: unireplknet(7),
            "stages.1.0.norm.bias",
            r"UniRepLKNet's block.*'norm.bias' of shape \(4,\) is missing",
        ),
        (lambda: unireplknet(7), "stages.1.0.pwconv2.2.running_var", "part of the block 'stages.1.0'"),
    ],
)
def test_a_tensor_that_is_missing_is_named(sd, key, match):
    with pytest.raises(CheckpointError, match=match):
        fuse_state_dict({name: tensor for name, tensor in sd().items() if name != key})
