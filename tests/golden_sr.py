"""The golden networks of super-resolution whose convolutions are our blocks: SPAN, FMEN, PlainUSR."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from golden_nets import IN_RRRB, Config, Kind, Rules
from torch import Tensor, nn

from reparam import RRRB, Conv3XC, ConvSpec, Kernel, RepMBConvBlock, SequentialBranch
from reparam.algebra._kernels import identity
from reparam.algebra._linear import LinearOp, linear_op

RGB_MEAN = (0.4488, 0.4371, 0.4040)


def upsampler(channels: int, colors: int, scale: int) -> nn.Module:
    """A convolution and a pixel shuffle."""
    return nn.Sequential(nn.Conv2d(channels, colors * scale**2, 3, padding=1), nn.PixelShuffle(scale))


class SPAB(nn.Module):
    """SPAN's block: its output, its first activation, and its attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(channels) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = F.silu(self.c1_r(x))  # after the activation: the official one works in place
        third = self.c3_r(F.silu(self.c2_r(first)))
        attention = third.sigmoid() - 0.5
        return (third + x) * attention, first, attention


class ConcatenatedSPAB(SPAB):
    """A SPAB whose three outputs are one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(super().forward(x), 1)


class SPAN(nn.Module):
    """SPAN by its authors, in neosr and in traiNNer, which differ in their normalisation and number of blocks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, self.count = config["feature_channels"], config.get("num_blocks", 6)
        self.normalize, self.range = config.get("norm", True), config.get("img_range", 255.0)
        self.conv_1, self.conv_2 = Conv3XC(config["num_in_ch"], channels), Conv3XC(channels)
        for index in range(1, self.count + 1):
            self.add_module(f"block_{index}", SPAB(channels))
        self.conv_cat = nn.Conv2d(4 * channels, channels, 1)
        self.upsampler = upsampler(channels, config["num_out_ch"], config["upscale"])

    def forward(self, x: Tensor) -> Tensor:
        if self.normalize:
            # The official mean is float32 in float64 too.
            x = (x - torch.tensor(RGB_MEAN).to(x).reshape(1, 3, 1, 1)) * self.range
        outputs = [self.conv_1(x)]
        for index in range(1, self.count + 1):
            y, first, _ = self.get_submodule(f"block_{index}")(outputs[-1])
            outputs.append(y)
        return self.upsampler(self.conv_cat(torch.cat([outputs[0], self.conv_2(y), outputs[1], first], 1)))


IN_SPAN_NET: Rules = [(r"\bconv\.(\d)", r"branches.1.layers.\1"), (r"\bsk\.", "branches.0.conv.")]


class ERB(nn.Module):
    """FMEN's residual block."""

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        self.conv1, self.conv2 = RRRB(channels, expansion=ratio), RRRB(channels, expansion=ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.conv1(x), 0.1))


class HFAB(nn.Module):
    """FMEN's attention, whose batch norms lie before and after 3x3 convolutions."""

    def __init__(self, channels: int, blocks: int, middle: int, ratio: int) -> None:
        super().__init__()
        squeeze, excite = nn.Conv2d(channels, middle, 3), nn.Conv2d(middle, channels, 3)
        self.squeeze = SequentialBranch(ConvSpec(channels, middle), nn.BatchNorm2d(channels), squeeze)
        self.convs = nn.Sequential(*(ERB(middle, ratio) for _ in range(blocks)))
        around = nn.BatchNorm2d(middle), excite, nn.BatchNorm2d(channels)
        self.excitate = SequentialBranch(ConvSpec(middle, channels), *around)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.convs(F.leaky_relu(self.squeeze(x), 0.1)), 0.1)
        return self.excitate(y).sigmoid() * x


class FMEN(nn.Module):
    """The network of FMEN."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, middle, colors, down = (config[name] for name in ("n_feats", "mid_feats", "n_colors", "down_blocks"))
        ratios, ups = (config["backbone_expand_ratio"], config["attention_expand_ratio"]), config["up_blocks"]
        conv = partial(nn.Conv2d, channels, kernel_size=3, padding=1)
        self.head = nn.Conv2d(colors, channels, 3, padding=1)
        self.warmup = nn.Sequential(conv(channels), HFAB(channels, ups[0], middle - 4, ratios[1]))
        self.ERBs = nn.ModuleList(ERB(channels, ratios[0]) for _ in range(down))
        self.HFABs = nn.ModuleList(HFAB(channels, count, middle, ratios[1]) for count in ups[1 : down + 1])
        self.lr_conv, self.tail = conv(channels), upsampler(channels, colors, config["scale"][0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y = self.warmup(x)
        for erb, hfab in zip(self.ERBs, self.HFABs):
            y = hfab(erb(y))
        return self.tail(self.lr_conv(y) + x)


IN_FMEN: Rules = [
    (r"bn1\.", "squeeze.layers.0."),
    (r"\bsqueeze\.(weight|bias)", r"squeeze.layers.1.\1"),
    (r"bn2\.", "excitate.layers.0."),
    (r"\bexcitate\.(weight|bias)", r"excitate.layers.1.\1"),
    (r"bn3\.", "excitate.layers.2."),
    *IN_RRRB,
]
FUSED_RRRB: Rules = [(r"rep_conv\.", "")]


class IntoFirstChannel(nn.Module):
    """PlainUSR's PConv: channel 0 is replaced by a 1x1 convolution of all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)


@linear_op.register
def _(module: IntoFirstChannel, channels: int, like: Tensor) -> LinearOp:
    unit = identity(channels, 1, 2, module.conv.weight)
    kernel = Kernel(torch.cat([module.conv.weight, unit.weight[1:]]), torch.cat([module.conv.bias, unit.bias[1:]]))
    return LinearOp(kernel, (1, 1), (1, 1), 1)


class SoftPool(nn.Module):
    """The mean over 7x7, weighted with the exponential."""

    def forward(self, x: Tensor) -> Tensor:
        weight = x.exp()
        return F.avg_pool2d(weight * x, 7, 3) / F.avg_pool2d(weight, 7, 3)


class LocalAttention(nn.Module):
    """PlainUSR's attention of a small map, enlarged; in the fastest network a plain convolution."""

    def __init__(self, channels: int, hidden: int, fast: bool) -> None:
        super().__init__()
        small = [
            nn.Conv2d(channels, hidden, 1),
            SoftPool(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            nn.Conv2d(hidden, channels, 3, padding=1),
        ]
        layers = [nn.Conv2d(channels, channels, 3, padding=1)] if fast else small
        self.body = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        heat = self.body(x)
        heat = heat if heat.shape == x.shape else F.interpolate(heat, x.shape[2:], mode="bilinear")
        return x * heat * x[:, :1].sigmoid()


def plainusr_block(version: int, channels: int, hidden: int) -> nn.Module:
    """Blockv1 to Blockv4; from v2 on the last convolution takes the PConv in, and an attention follows."""
    count = 3 if version == 4 else 2
    layers: list[nn.Module] = []
    for index in range(count):
        last = version > 1 and index == count - 1
        block = RepMBConvBlock(channels, padding=0 if last else 1)
        inner = SequentialBranch(ConvSpec(channels), block, IntoFirstChannel(channels)) if last else block
        layers += [inner, nn.LeakyReLU(0.05)]
    layers.pop()
    attention = [LocalAttention(channels, hidden, fast=version == 3)] if version > 1 else []
    return nn.Sequential(*layers, *attention)


class Body(nn.Module):
    """One block under the name of the official ones."""

    def __init__(self, version: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = plainusr_block(version, channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class PlainUSR(nn.Module):
    """The networks of PlainUSR: blocks on fewer and fewer and then on more and more of the first channels."""

    def __init__(self, config: Config, versions: dict[str, int]) -> None:
        super().__init__()
        widths, total = config["im_feat"], config["n_feat"] + 3
        self.widths = dict(zip(versions, [*widths, *widths[-2::-1]]))
        self.head = nn.Conv2d(3, total, 3, padding=1)
        for name, version in versions.items():
            self.add_module(name, Body(version, self.widths[name], config["attn_feat"]))
        self.tail = upsampler(total, 3, config["scale"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for name, width in self.widths.items():
            x = torch.cat([self.get_submodule(name)(x[:, :width]), x[:, width:]], 1)
        return self.tail(x)


ULTRA = {"block1": 1, "blockm": 3, "block2": 1}
GENERAL = dict.fromkeys(("block1", "block2", "blockm", "block3", "block4"), 2)
LARGE = dict.fromkeys(GENERAL, 4)

IN_MBCONV: Rules = [
    (r"expand_conv", "branches.0.layers.0"),
    (r"fea_conv", "branches.0.layers.1.branches.0.layers.0"),
    (r"reduce_conv", "branches.0.layers.2"),
    (r"se\.tensor", "branches.0.layers.1.branches.0.layers.1.vector"),
    (r"se\.se\.1", "branches.0.layers.1.branches.0.layers.1.reduce"),
    (r"se\.se\.3", "branches.0.layers.1.branches.0.layers.1.expand"),
]


def in_blocks(last: int) -> Rules:
    """Names inside Blockv2 to v4, whose last MBConv has the number `last`."""
    return [
        (rf"body\.{last + 1}\.conv", f"body.{last}.layers.1.conv"),
        (rf"body\.{last + 2}\.body", f"body.{last + 1}.body"),
        (rf"body\.{last}\.(expand|fea|reduce|se)", rf"body.{last}.layers.0.\1"),
        *IN_MBCONV,
    ]


def in_v1(rules: Rules) -> Rules:
    """The same for networks that also have Blockv1, named block1 and block2."""
    return [
        (pattern.replace("body", "blockm.body", 1), str(new).replace("body", "blockm.body", 1))
        for pattern, new in rules
    ]


def plainusr(versions: dict[str, int], rules: Rules) -> Kind:
    return Kind(lambda config: PlainUSR(config, versions), rules, [])


def plainusr_body(version: int, rules: Rules) -> Kind:
    return Kind(lambda config: Body(version, config["n_feat"], config["f"]), rules, [])


KINDS = {
    "SPAB": Kind(
        lambda config: ConcatenatedSPAB(config["in_channels"]), IN_SPAN_NET, [], unused=lambda config: r".*eval_conv\."
    ),
    **dict.fromkeys(
        ("SPAN", "SPAN-48", "span"), Kind(SPAN, IN_SPAN_NET, [], unused=lambda config: r".*eval_conv\.|no_norm")
    ),
    "ERB": Kind(lambda config: ERB(8), IN_RRRB, FUSED_RRRB),
    "HFAB": Kind(lambda config: HFAB(8, 2, 4, 2), IN_FMEN, FUSED_RRRB),
    "TRAIN_FMEN -> TEST_FMEN": Kind(FMEN, IN_FMEN, FUSED_RRRB),
    "MBConv (RepMBConv)": Kind(
        lambda config: RepMBConvBlock(config["n_feat"], expansion=config["ratio"]), IN_MBCONV, []
    ),
    "Blockv1": plainusr_body(1, IN_MBCONV),
    "Blockv2": plainusr_body(2, in_blocks(2)),
    "Blockv3": plainusr_body(3, in_blocks(2)),
    "Blockv4": plainusr_body(4, in_blocks(4)),
    "PlainUSR_ultra": plainusr(ULTRA, [*in_v1(in_blocks(2)[:3]), *IN_MBCONV]),
    "PlainUSR_general": plainusr(GENERAL, in_blocks(2)),
    "PlainUSR_large": plainusr(LARGE, in_blocks(4)),
}
"""By the name of the official class, which is `block` in a file's metadata."""
