"""Networks such as people have, and a network for each kind of step, to be read and written."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import strategies as st
from torch import nn

from reparam import RepSRBlock, RepVGGBlock
from reparam.deploy._plain import FUNCTIONS


class Of(nn.Module):
    """A network that is a function of the image, and layers."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    """Of images of one size in and out, at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * options.get("dilation", 1), **options)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth, with some noise, in float64, of 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(*shape[:2], 3, 4, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(coarse, shape[2:], mode="bicubic").clip(0, 1)
    return 0.9 * smooth + 0.1 * torch.rand(shape, generator=generator, dtype=torch.float64)


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
    """EDSR's, with the mean of colors in a buffer, residuals, and an enlarging in two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.404]).view(1, 3, 1, 1))
        self.head, self.one, self.two = conv(3, 4), conv(4, 4), conv(4, 4)
        self.tail = nn.Sequential(conv(4, 16), nn.PixelShuffle(2), conv(4, 16), nn.PixelShuffle(2), conv(4, 3))

    def forward(self, x):
        x = self.head((x - self.mean.type_as(x)) * 255.0)
        x = x + self.two(F.relu(self.one(x), inplace=True)).mul(0.1)
        return self.tail(x) / 255.0 + self.mean


LIBRARY = [
    ("plain_m4c8_x1", {}),
    ("repsr_m4c8_x3_y", {}),
    ("ecbsr_m4c8_x4", {"act": "relu"}),
    ("repvggsr_m4c8_x2", {"act": "softplus", "base": "bilinear"}),
    ("qarepvggsr_m4c8_x2", {"act": "leakyrelu"}),
    ("collapsiblesr_m4c8_x2", {"act": "linear"}),
    ("sesr_m3_x2", {}),
    ("edsr_m2c8_x4", {"block": RepSRBlock}),
    ("edsr_m2c8_x3", {"res_scale": 0.1}),
]
"""Names and options of networks of this library, of every kind."""

NETS = {
    "SPAN": lambda: nn.Sequential(conv(3, 6), Attention(6)),
    "squeeze": lambda: nn.Sequential(conv(3, 4), Squeeze(4)),
    "NAFNet": lambda: nn.Sequential(conv(3, 8), LayerNorm(8), Of(gate)),
    "ABPN": Anchored,
    "SRVGG": Compact,
    "EDSR": Shifted,
    "RepVGG": lambda: nn.Sequential(RepVGGBlock(3, 8, stride=2), nn.ReLU()),
    "unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(12, 4), nn.PixelShuffle(2)),
    "norm": lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.GELU()),
    "classifier": lambda: nn.Sequential(
        conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 5)
    ),
}
"""Of three colors; what makes them."""

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
        Of(lambda x: torch.tensor([[3.0, 5.0, 7.0]])[:, :, None, None].to(x) - x),
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


FUNCTIONS_OF_TORCH = {
    **{name: getattr(F, name, None) or getattr(torch, name) for name in FUNCTIONS if name != "gelu_tanh"},
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


def _moved(x):
    return x.flip(1)[:, :, 1:]


_DRAWN = [
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


@st.composite
def nets(draw) -> nn.Sequential:
    """Up to six layers in a row, of three colors, with values of about one, in float64."""
    kinds = draw(st.lists(st.integers(0, len(_DRAWN) - 1), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**31 - 1))
    torch.manual_seed(seed)
    net, x = nn.Sequential(nn.Identity()).double().eval(), picture(2, 3, 32, 48, seed=seed)
    for kind in kinds:
        layer = randomise(_DRAWN[kind](x.shape[1]), seed).double().eval()
        with torch.no_grad():
            y = layer(x.clone())
        if min(y.shape[2:]) >= 4 and y.numel() < 1e6:
            net, x = net.append(layer), y / y.abs().max()
    return net
