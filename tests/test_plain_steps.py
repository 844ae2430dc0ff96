"""The walk that writers of small formats share: the steps compute what the network does, or it is refused."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, made, randomise
from hypothesis import given
from plain_nets import FUNCTIONS_OF_TORCH, KINDS_OF_STEP, LIBRARY, NETS, Of, Shifted, nets, picture
from step_numbers import KINDS, numbers_of
from torch import nn

from reparam import ExportError, RepSRBlock, fuse, load_checkpoint, swap_convs
from reparam.deploy._plain import FUNCTIONS, plain_steps, with_small_sums
from reparam.models._pretrained import network_file
from reparam.sr import list_models


def assert_same(net: nn.Module, colors: int = 3, sizes=((8, 12), (16, 20), (12, 36)), dynamic: bool = True) -> list:
    net = copy.deepcopy(net).double().eval()
    plain = plain_steps(net, picture(2, colors, *sizes[0]), dynamic)
    lean = with_small_sums(plain)
    for size in sizes if dynamic else sizes[:1]:
        x = picture(3 if dynamic else 2, colors, *size, seed=1)
        with torch.no_grad():
            wanted = net(x.clone())
        assert_close(numbers_of(plain, x), wanted, 1e-12)
        assert_close(numbers_of(lean, x), wanted, 1e-12)
    return [step.kind for step in plain.steps]


# Networks


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_networks_with_weights(name):
    net = load_checkpoint(network_file(name, fused=True))
    kinds = assert_same(net, net.colors)
    assert kinds == ["conv", "prelu"] * (net.num_blocks + 1) + ["conv", "resize", "shuffle", "add"]


@pytest.mark.parametrize(("name", "options"), LIBRARY)
def test_every_kind_of_network_of_this_library(name, options):
    net = made(name, **options)
    assert_same(fuse(net) if name[:5] not in ("plain", "edsr_") or options.get("block") else net, net.colors)


@pytest.mark.parametrize("name", NETS)
def test_networks_of_others(name):
    net = randomise(NETS[name](), 0)
    assert_same(net)
    assert_same(net.to(memory_format=torch.channels_last))


# Each kind of step


def test_every_kind_of_step_is_tried():
    assert {*KINDS_OF_STEP, "function"} == KINDS.keys()


@pytest.mark.parametrize(
    ("kind", "net"),
    [pytest.param(kind, net, id=f"{kind}-{i}") for kind, nets in KINDS_OF_STEP.items() for i, net in enumerate(nets)],
)
def test_a_kind_of_step(kind, net):
    assert kind in assert_same(net)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    function = FUNCTIONS_OF_TORCH[name]
    positive = name in ("log", "sqrt")
    assert_same(Of(lambda x: function(x + 0.1) if positive else function(8 * x - 4)))


# Networks drawn


@given(nets())
def test_networks_drawn(net):
    assert_same(net, sizes=((32, 48), (64, 48)))


# What is refused


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.zeros(1, 3, 8, 12, dtype=torch.float64))

    def forward(self, x):
        return self.buffer.add_(x) + 1


REFUSED = {
    "the network computes add of (1, 1, 8, 12) and (1, 3, 8, 12)": lambda x: x[:, :1].relu_() + x,
    "the network computes sin of (1, 3, 8, 12)": lambda x: (lambda view: [x.add_(1), view.sin()][1])(x[:, :]),
    "the network computes add_ of (1, 3, 8, 12) into a constant or `out`": Buffered(),
    "the network computes copy_ of (1, 3, 8, 12) into a constant or `out`": lambda x: torch.zeros(1, 3, 8, 12).copy_(x),
    "computes add of (1, 3, 8, 12) and (1, 3, 8, 12) into a constant or `out`": lambda x: torch.add(x, 1, out=x),
    "the network computes _local_scalar_dense of ()": lambda x: x * x[0, 0, 0, 0].item(),
    "the network computes affine from the size or the values of the image": lambda x: x / x.shape[3],
    "computes clamp from the size": Of(lambda x, y: y(x) if len(x) < 2 else y(x + 1), nn.ReLU()),
    "Of runs other steps for an image of another size": lambda x: x + 1 if x.shape[2] == 8 else (x + 1).sin(),
    "computes affine from the size or the values": lambda x: x * float(x.numpy().mean()),
    "computes gather from the size": lambda x: x[:, [x.shape[2] % 3]],
    "computes crop from the size": lambda x: x[:, :, :4],
    "computes resize from the size": lambda x: F.interpolate(x, size=(16, 16)),
    "upsample_bilinear2d of (1, 3, 8, 12), .* scales_h=1.3": nn.Upsample(scale_factor=1.3, mode="bilinear"),
    "the network computes softplus of (1, 3, 8, 12), .* beta=2, threshold=20": lambda x: F.softplus(x, 2),
    "computes elu of (1, 3, 8, 12), .* scale=1.0507": F.selu,
    "layers.0 computes max of (1, 3, 8, 12), .*: dim=1": Of(lambda x, layer: layer(x), Of(lambda x: x.max(1, True)[0])),
    "computes avg_pool2d of .* ceil_mode=True": nn.AvgPool2d(3, 2, ceil_mode=True),
    "computes max_pool2d_with_indices of .* dilation=.2": nn.MaxPool2d(2, 1, dilation=2),
    "computes convolution of (1, 3, 8, 12) and (1, 3, 1, 1)": lambda x: F.conv2d(x, x.mean((2, 3), True)),
    "computes native_batch_norm of .* training=True": lambda x: F.batch_norm(x, None, None, training=True),
    "computes native_layer_norm": lambda x: F.layer_norm(x, [12]),
    "computes _to_copy of": lambda x: x.float(),
    "computes mul of .*, which is not a step": lambda x: x * torch.rand(12),
    "computes add of .*, which is not a step": lambda x: x + torch.rand(1, 3, 8, 12),
    "computes mean of (1, 3, 8, 12), .* dim=.1, 2, 3.": lambda x: x.mean((1, 2, 3), True) + x,
    "computes div of (1, 3, 1, 1) and (1, 3, 8, 12)": lambda x: x.mean((2, 3), True) / x,
    "computes div of .* rounding_mode=floor": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "computes clamp of": lambda x: x.clamp(max=torch.tensor(0.5)),
    "computes maximum of (1, 3, 8, 12),": lambda x: torch.maximum(x, torch.tensor(0.5)),
    "computes mean of .* keepdim=False": lambda x: x.mean(1)[:, None],
    "computes sigmoid of (1, 3, 12, 8)": lambda x: x.transpose(2, 3).sigmoid(),
    "computes sigmoid of (3, 8, 12)": lambda x: x[0].sigmoid()[None],
    "computes constant_pad_nd of .* pad=.*-1": lambda x: F.pad(x, (-1, 0)),
    "computes gather of": lambda x: x.gather(1, torch.zeros(1, 1, 8, 12).long()),
    "computes mul of (1, 3, 4, 6) and": lambda x: (lambda y, i: y * i)(*F.max_pool2d(x, 2, return_indices=True)),
    "computes _to_copy of (1, 3, 4, 6)": lambda x: F.max_pool2d(x, 2, return_indices=True)[1].double(),
    "Of returns a tuple, not an image": lambda x: (x, x),
    r"returns a tensor (1, 3, 12, 8), not an image": lambda x: x.mT,
    r"returns a tensor (1, 1, 1, 1), not an image": lambda x: torch.ones(1, 1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_said_is_refused(message):
    net = REFUSED[message]
    net = (net if isinstance(net, nn.Module) else Of(net)).double().eval()
    pattern = re.sub(r"(?<!\\)([()])", r"\\\1", message)
    with pytest.raises(ExportError, match=pattern):
        plain_steps(net, picture(2, 3, 8, 12))


@pytest.mark.parametrize("example", [torch.rand(3, 8, 12), torch.ones(1, 3, 8, 12, dtype=torch.long)])
def test_an_example_that_is_no_image(example):
    with pytest.raises(
        ExportError, match=re.escape(f"but got an example of {tuple(example.shape)} of {example.dtype}")
    ):
        plain_steps(nn.ReLU(), example)


def test_sizes_of_the_network_where_they_are_fixed():
    resized = Of(lambda x: F.interpolate(F.avg_pool2d(x, x.shape[2:]), x.shape[2:]) / x.shape[2])
    assert assert_same(resized, dynamic=False) == ["average", "resize", "affine"]
    assert_same(Of(lambda x: F.interpolate(x, scale_factor=0.5)), dynamic=False)


def test_constants_are_as_they_were_when_they_were_used():
    class Counting(nn.Module):
        def forward(self, x):
            factor = torch.full((3, 1, 1), 2.0, dtype=x.dtype)
            y = x * factor
            return y * factor.add_(1)

    assert assert_same(Counting()) == ["affine", "affine"]


def test_weights_are_the_parameters_themselves():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1, bias=False), nn.ConvTranspose2d(2, 1, 2)).eval()
    plain = plain_steps(net, torch.rand(2, 3, 8, 12))
    for step, layer in zip(plain.steps, net):
        assert step.settings["weight"] is layer.weight
        assert step.settings["bias"] is layer.bias or (layer.bias is None and not step.settings["bias"].any())


def test_views_that_nobody_looks_at_do_not_matter():
    net = nn.Sequential(Of(lambda x: (x + 1)[:, 1:]), nn.ReLU(inplace=True))
    assert assert_same(net) == ["affine", "gather", "clamp"]
    assert assert_same(Of(lambda x: x.repeat_interleave(2, 1).mul_(3))) == ["gather", "affine"]


def test_whoever_asks_in_inference_mode_gets_the_same():
    net, x = made("plain_m1c4_x2"), torch.rand(2, 3, 8, 9)
    with torch.inference_mode():
        asked = plain_steps(net, x.clone())
    assert [step.kind for step in asked.steps] == [step.kind for step in plain_steps(net, x).steps]


def test_the_network_is_left_as_it_is():
    net = Shifted().eval()
    swap_convs(net, RepSRBlock)
    net, example = fuse(net), torch.rand(2, 3, 8, 8)
    before = example.clone()
    plain = plain_steps(net, example)
    assert torch.equal(example, before)
    assert not [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert [step.layer for step in plain.steps][:3] == ["", "", "head"]
    with torch.inference_mode():
        assert plain_steps(net, example) is not None


def test_moves_that_end_where_they_began():
    there_and_back = Of(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), 2)[:, :3].mT.mT.sin())
    assert assert_same(there_and_back) == ["function"]
    assert assert_same(Of(lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2)[:, :, 1:])) == [
        "gather",
        "shuffle",
        "crop",
    ]


def test_steps_that_lead_nowhere_are_left_out():
    assert [step.kind for step in plain_steps(Of(lambda x: (x.sin(), x.cos())[1]), torch.rand(2, 3, 8, 12)).steps] == [
        "function"
    ]


# Sums of large images


def test_sums_before_the_shuffle():
    lean = with_small_sums(plain_steps(fuse(made("repsr_m1c4_x2")), torch.rand(2, 3, 8, 12)))
    assert [step.kind for step in lean.steps][-4:] == ["conv", "gather", "add", "shuffle"]
    assert lean.steps[-3].settings["index"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [step.shape for step in lean.steps][-3:] == [(1, 12, 8, 12), (1, 12, 8, 12), (1, 3, 16, 24)]


TWICE = partial(F.pixel_shuffle, upscale_factor=2)
LARGE = partial(F.interpolate, scale_factor=2)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: TWICE(x) + TWICE(x.sin()), ["function", "add", "shuffle"]),
        (lambda x: TWICE(x.sin()) + LARGE(x[:, :2]), ["function", "gather", "gather", "add", "shuffle"]),
        (lambda x: TWICE(x) + LARGE(x[:, :2]) + LARGE(x[:, 2:4]), [*["gather", "gather", "add"] * 2, "shuffle"]),
        (lambda x: LARGE(x) + TWICE(x.repeat(1, 4, 1, 1).sin()), ["gather", "function", "gather", "add", "shuffle"]),
        (lambda x: TWICE(x).sin() + TWICE(x), None),  # which the sine needs
        (lambda x: TWICE(x) + TWICE(x[:, :4]), None),  # one channel for all
        (lambda x: TWICE(x) + LARGE(x[:, :2], mode="bilinear"), None),
        (lambda x: TWICE(x) * LARGE(x[:, :2]), None),
        (lambda x: F.interpolate(x, scale_factor=(2, 1)) + F.interpolate(x.sin(), scale_factor=(2, 1)), None),
    ],
)  # fmt: skip
def test_sums_of_others(function, kinds):
    assert_same(Of(function), 8)
    plain = plain_steps(Of(function), picture(2, 8, 8, 12))
    lean = [step.kind for step in with_small_sums(plain).steps]
    assert lean == (kinds or [step.kind for step in plain.steps])
