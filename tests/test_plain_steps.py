"""The walk that writers of small formats share: the steps compute what the network does, or it is refused."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, made, randomise
from hypothesis import given
from hypothesis import strategies as st
from step_numbers import KINDS, numbers_of
from torch import nn

from reparam import ExportError, RepSRBlock, RepVGGBlock, fuse, load_checkpoint, swap_convs
from reparam.deploy._plain import FUNCTIONS, plain_steps, with_small_sums
from reparam.models._pretrained import network_file
from reparam.sr import list_models


class Of(nn.Module):
    """A network that is a function of the image, and layers."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth, with some noise, in float64, of 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 3, 4, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(coarse, shape[2:], mode="bicubic").clip(0, 1)
    return 0.9 * smooth + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)


def assert_same(net: nn.Module, colors: int = 3, sizes=((8, 12), (16, 20), (12, 36)), dynamic: bool = True) -> list:
    net = net.double().eval()
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain_m4c8_x1", {}),
        ("repsr_m4c8_x3_y", {}),
        ("ecbsr_m4c8_x4", {"act": "relu"}),
        ("repvggsr_m4c8_x2", {"act": "softplus", "base": "bilinear"}),
        ("qarepvggsr_m4c8_x2", {"act": "leakyrelu"}),
        ("collapsiblesr_m4c8_x2", {"act": "linear"}),
        ("sesr_m3_x2", {}),
        ("edsr_m2c8_x4", {"block": RepSRBlock}),
        ("edsr_m2c8_x3", {"res_scale": 0.1}),
    ],
)
def test_every_kind_of_network_of_this_library(name, options):
    net = made(name, **options)
    assert_same(fuse(net) if "plain" not in name and "res_scale" not in options else net, net.colors)


def conv(*channels: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(*channels, kernel, padding=kernel // 2, **options)


class Attention(nn.Module):
    """SPAN's: parameter-free."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.SiLU(inplace=True), conv(channels, channels))

    def forward(self, x):
        out = self.body(x)
        return (out + x) * (torch.sigmoid(out) - 0.5)


class Squeeze(nn.Module):
    """The squeeze and excitation of many codes, with linear layers and views."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers = (nn.Linear(channels, 2, bias=False), nn.ReLU(inplace=True), nn.Linear(2, channels), nn.Sigmoid())
        self.fc = nn.Sequential(*layers)

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class LayerNorm(nn.Module):
    """Over channels, as NAFNet has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (variance + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


def gate(x):
    one, other = x.chunk(2, dim=1)
    return one * other


class Anchored(nn.Module):
    """Mobile networks that repeat the image and clip, such as ABPN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), nn.ReLU6(True), conv(8, 12))

    def forward(self, x):
        anchor = torch.repeat_interleave(x, 4, dim=1)
        return torch.clamp(F.pixel_shuffle(self.body(x) + anchor, 2), 0.0, 1.0)


class Compact(nn.Module):
    """Real-ESRGAN's, with its list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([conv(3, 6), nn.PReLU(6), conv(6, 6), nn.PReLU(6), conv(6, 12)])
        self.upsampler = nn.PixelShuffle(2)

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        return self.upsampler(out) + F.interpolate(x, scale_factor=2, mode="nearest")


class Shifted(nn.Module):
    """EDSR's, with the mean of colours in a buffer, residuals, and an enlarging in two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.404]).view(1, 3, 1, 1))
        self.head, self.one, self.two = conv(3, 4), conv(4, 4), conv(4, 4)
        self.tail = nn.Sequential(conv(4, 16), nn.PixelShuffle(2), conv(4, 16), nn.PixelShuffle(2), conv(4, 3))

    def forward(self, x):
        x = self.head((x - self.mean.type_as(x)) * 255.0)
        x = x + self.two(F.relu(self.one(x), inplace=True)).mul(0.1)
        return self.tail(x) / 255.0 + self.mean


@pytest.mark.parametrize(
    ("net", "colors"),
    [
        pytest.param(lambda: Attention(6), 6, id="SPAN"),
        pytest.param(lambda: nn.Sequential(conv(3, 4), Squeeze(4)), 3, id="squeeze"),
        pytest.param(lambda: nn.Sequential(conv(3, 8), LayerNorm(8), Of(gate)), 3, id="NAFNet"),
        pytest.param(Anchored, 3, id="ABPN"),
        pytest.param(Compact, 3, id="SRVGG"),
        pytest.param(Shifted, 3, id="EDSR"),
        pytest.param(lambda: nn.Sequential(RepVGGBlock(3, 8, stride=2), nn.ReLU()), 3, id="RepVGG"),
        pytest.param(lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(12, 4), nn.PixelShuffle(2)), 3, id="unshuffle"),
        pytest.param(lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.GELU()), 3, id="norm"),
        pytest.param(
            lambda: nn.Sequential(
                conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 5)
            ),
            3,
            id="classifier",
        ),
    ],
)
def test_networks_of_others(net, colors):
    net = randomise(net(), 0)
    assert_same(net, colors)
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        assert_same(net.to(memory_format=torch.channels_last), colors)


# Each kind of step


KINDS_OF_STEP = {
    "conv": [conv(3, 4, kernel=5, stride=2, bias=False), nn.Conv2d(3, 6, (1, 3), padding=(2, 0), dilation=2, groups=3)],
    "transposed": [nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3), nn.ConvTranspose2d(3, 2, (4, 2), 2)],
    "pad": [
        nn.ZeroPad2d((1, 2, 0, 3)),
        nn.ConstantPad2d((0, 1, 2, 3), 0.5),
        nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d(2),
        *(conv(3, 4, padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
        Of(lambda x: F.pad(x, (1, 0, 2, 3), "circular")),
        nn.Conv2d(3, 4, 4, padding="same"),
    ],
    "crop": [Of(lambda x: x[:, :, 1:-2, 3:]), Of(lambda x: x.narrow(2, 1, x.shape[2] - 1))],
    "prelu": [randomise(nn.PReLU(3), 0), nn.PReLU(), nn.LeakyReLU(0.2, inplace=True)],
    "clamp": [
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-0.2, 0.7),
        Of(lambda x: x.clip(max=0.5)),
        Of(lambda x: x.clamp_(0.1, 0.7)),
        Of(lambda x: torch.clamp_min(x, 0.3)),
    ],
    "add": [
        Of(lambda x: x + x.mean((2, 3), keepdim=True)),
        Of(lambda x: torch.add(x.tanh(), x, alpha=0.5)),
        Of(lambda x: x.sin() - x),
        Of(lambda x: torch.rsub(x.sin(), x, alpha=3)),
        Of(lambda x: x[:, :1] - x),
    ],
    "multiply": [Of(lambda x: x * x), Of(lambda x: x.mean((2, 3), True)[:, 1:2] * x), Of(lambda x: x[:, :1] * x)],
    "divide": [Of(lambda x: x / (x * x + 1)), Of(lambda x: x / x.mean(1, keepdim=True))],
    "maximum": [Of(lambda x: torch.maximum(x, x.cos()))],
    "minimum": [Of(lambda x: torch.minimum(x.mean((2, 3), True), x))],
    "affine": [
        Of(lambda x: (2 - x) / 3),
        Of(lambda x: -x),
        Of(lambda x: x / torch.tensor([3, 5, 7]).view(3, 1, 1)),
        Of(lambda x: torch.tensor([[3.0, 5.0, 7.0]])[:, :, None, None].double() - x),
        randomise(nn.BatchNorm2d(3), 0),
        nn.BatchNorm2d(3, affine=False),
    ],
    "power": [Of(lambda x: x.square()), Of(lambda x: 3 / (x + 1)), Of(lambda x: x.add(1).rsqrt().reciprocal())],
    "concat": [Of(lambda x: torch.cat([x, x.sin(), x], -3))],
    "gather": [
        Of(lambda x: x[:, [2, 0]]),
        Of(lambda x: x.flip(1)),
        Of(lambda x: x.repeat(1, 2, 1, 1)),
        Of(lambda x: x.repeat_interleave(2, 1)),
        Of(lambda x: x.index_select(1, torch.tensor([1, 1]))),
        Of(lambda x: x[:, 1:]),
        Of(lambda x: x[:, ::2]),
        Of(lambda x: x[:, 1].unsqueeze(1)),
        Of(lambda x: torch.cat(x.split([1, 2], 1)[::-1], 1)),
        nn.Sequential(conv(3, 6), nn.ChannelShuffle(3)),
    ],
    "shuffle": [
        nn.Sequential(conv(3, 12), nn.PixelShuffle(2)),
        nn.Sequential(conv(3, 9), nn.PixelShuffle(3), nn.ReLU(inplace=True)),
        Of(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ],
    "unshuffle": [nn.PixelUnshuffle(2), nn.PixelUnshuffle(4), Of(lambda x: x[..., ::2, 1::2])],
    "resize": [
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=(2, 3), mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Upsample(scale_factor=3, mode="nearest-exact"),
        Of(lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3]), mode="bilinear")),
    ],
    "average": [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 1), padding=(1, 0), count_include_pad=False), nn.AvgPool2d(2)],
    "largest": [nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2)],
    "mean": [nn.AdaptiveAvgPool2d(1), Of(lambda x: x.mean((3, 2))), Of(lambda x: x.mean((-1, -2), keepdim=True))],
}  # fmt: skip


def test_every_kind_of_step_is_tried():
    assert {*KINDS_OF_STEP, "function"} == KINDS.keys()


@pytest.mark.parametrize(
    ("kind", "net"),
    [pytest.param(kind, net, id=f"{kind}-{i}") for kind, nets in KINDS_OF_STEP.items() for i, net in enumerate(nets)],
)
def test_a_kind_of_step(kind, net):
    assert kind in assert_same(net)


FUNCTIONS_OF_TORCH = {
    **{name: getattr(F, name, None) or getattr(torch, name) for name in FUNCTIONS if name != "gelu_tanh"},
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function(name):
    function = FUNCTIONS_OF_TORCH[name]
    positive = name in ("log", "sqrt")
    assert_same(Of(lambda x: function(x + 0.1) if positive else function(8 * x - 4)))


# Networks drawn


def _moved(x):
    return x.flip(1)[:, :, 1:]


DRAWN = [
    lambda c: conv(c, c + 1),
    lambda c: conv(c, 2, kernel=1, bias=False),
    lambda c: conv(c, c, groups=c, dilation=2, padding_mode="replicate"),
    lambda c: nn.Conv2d(c, 4, (3, 2), padding=(1, 0)),
    lambda c: conv(c, 12, stride=2),
    lambda c: nn.ConvTranspose2d(c, 3, 2, 2),
    lambda c: nn.BatchNorm2d(c),
    lambda c: nn.PReLU(c),
    lambda c: nn.LeakyReLU(0.1, inplace=True),
    lambda c: nn.Hardswish(inplace=True),
    lambda c: nn.Sequential(conv(c, 4 * c), nn.PixelShuffle(2)),
    lambda c: nn.Upsample(scale_factor=2, mode="bilinear"),
    lambda c: nn.AvgPool2d(2),
    lambda c: Squeeze(c),
    lambda c: Of(_moved),
    lambda c: Of(lambda x: torch.cat([x, x[:, :1].sigmoid()], 1)),
    lambda c: Of(lambda x, layer: x + layer(x), conv(c, c)),
    lambda c: Of(lambda x, layer: torch.sub(layer(x), x, alpha=2) / 3, conv(c, 1)),
    lambda c: Of(lambda x: x.repeat_interleave(2, 1).relu_()),
    lambda c: Of(lambda x: x * x.mean((2, 3), keepdim=True).tanh() + x.mean(1, keepdim=True)),
]


@given(kinds=st.lists(st.integers(0, len(DRAWN) - 1), min_size=1, max_size=6), seed=st.integers(0, 2**31 - 1))
def test_networks_drawn(kinds, seed):
    torch.manual_seed(seed)
    net, x = nn.Sequential().double().eval(), picture(2, 3, 32, 48, seed=seed)
    for kind in kinds:
        layer = randomise(DRAWN[kind](x.shape[1]), seed).double().eval()
        with torch.no_grad():
            y = layer(x.clone())
        if min(y.shape[2:]) >= 4 and y.numel() < 1e6:
            net, x = net.append(layer), y / y.abs().max()
    if net:
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
    "Of takes other steps for an image of another size": lambda x: x + 1 if x.shape[2] == 8 else (x + 1).sin(),
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
    "computes mul of .*, which is none": lambda x: x * torch.rand(12),
    "computes add of .*, which is none": lambda x: x + torch.rand(1, 3, 8, 12),
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
    "Of gives a tuple that is no image": lambda x: (x, x),
    r"gives a tensor (1, 3, 12, 8) that is no image": lambda x: x.mT,
    r"gives a tensor (1, 1, 1, 1) that is no image": lambda x: torch.ones(1, 1, 1, 1),
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
    with pytest.raises(ExportError, match=re.escape(f"but the example is {tuple(example.shape)} of {example.dtype}")):
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


def test_views_that_nobody_looks_at_do_not_matter():
    net = nn.Sequential(Of(lambda x: (x + 1)[:, 1:]), nn.ReLU(inplace=True))
    assert assert_same(net) == ["affine", "gather", "clamp"]
    assert assert_same(Of(lambda x: x.repeat_interleave(2, 1).mul_(3))) == ["gather", "affine"]


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
