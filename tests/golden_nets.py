"""The networks of the golden files, built from our blocks, and how the official key names become ours.

Everything that is not linear, or not a block, is plain torch: activations, squeeze-and-excite, heads, bilinear bases.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from reparam import (
    ECB,
    ECBSR,
    EDBB,
    RRRB,
    SESR,
    ACBlock,
    Branch,
    CollapsibleLinearBlock,
    Conv3XC,
    ConvBranch,
    ConvSpec,
    DilatedReparamBlock,
    DiverseBranchBlock,
    IdentityBranch,
    LaplacianBranch,
    MobileOneBlock,
    ReparamBlock,
    RepSRBlock,
    RepVGGBlock,
    SequentialBranch,
    SobelBranch,
)
from reparam.models import SRNet

Config = Mapping[str, Any]
Rules = list[tuple[str, "str | Callable[[re.Match[str]], str]"]]


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """The same tensors under our names: every rule is applied in turn; two keys must not become one."""
    renamed: dict[str, Tensor] = {}
    for official, tensor in tensors.items():
        key = official
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key in renamed:
            raise KeyError(f"{official!r} becomes {key!r}, and so does another key")
        renamed[key] = tensor
    return renamed


def load(net: nn.Module, renamed: Mapping[str, Tensor]) -> nn.Module:
    """Loads a state dict; raises if a key is left over or anything of ours is not filled."""
    ours = net.state_dict().keys()
    if renamed.keys() != ours:
        raise KeyError(f"left over: {sorted(renamed.keys() - ours)}, not filled: {sorted(ours - renamed.keys())}")
    net.load_state_dict(renamed)
    return net


def unit(**parts: nn.Module | None) -> nn.Sequential:
    """A block and what follows it, by name; None is left out."""
    return nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if part is not None))


def seq_conv(config: Config) -> nn.Module:
    """One edge path of ECB on its own."""
    kind = {"conv1x1-sobelx": SobelBranch, "conv1x1-laplacian": LaplacianBranch}[config["seq_type"]]
    return kind(ConvSpec(config["inp"], config["out"]))


def identity_option(config: Config) -> bool | None:
    """Their with_idt=True means "where the channels match", which is our None."""
    return None if config["with_idt"] else False


def ecb(config: Config) -> nn.Module:
    """An ECB with its activation."""
    narrow, wide = config["inp_planes"], config["out_planes"]
    block = ECB(narrow, wide, expansion=config["depth_multiplier"], identity=identity_option(config))
    acts = {"prelu": nn.PReLU(wide), "softplus": nn.Softplus(), "linear": None}
    return unit(block=block, act=acts[config["act_type"]])


def ecbsr(config: Config) -> nn.Module:
    """ECBSR by the authors (1 color) and in BasicSR (1 or 3), which differ in the names of their arguments."""
    names = ("module_nums", "channel_nums", "colors")
    names = names if "colors" in config else ("num_block", "num_channel", "num_in_ch")
    num_blocks, channels, colors = (config[name] for name in names)
    identity = identity_option(config)
    return ECBSR(scale=config["scale"], num_blocks=num_blocks, channels=channels, colors=colors, identity=identity)


EDGE: Rules = [
    (r"\bk0$", "conv.weight"),
    (r"\bb0$", "conv.bias"),
    (r"(^|branches\.[234]\.)(scale|bias|mask)$", r"\1filter.\2"),
]
IN_ECB: Rules = [
    (r"conv3x3\.", "block.branches.0.conv."),
    (r"conv1x1_3x3\.k0", "block.branches.1.expand.weight"),
    (r"conv1x1_3x3\.b0", "block.branches.1.expand.bias"),
    (r"conv1x1_3x3\.k1", "block.branches.1.squeeze.weight"),
    (r"conv1x1_3x3\.b1", "block.branches.1.squeeze.bias"),
    *((rf"conv1x1_{name}", f"block.branches.{index}") for index, name in enumerate(("sbx", "sby", "lpl"), start=2)),
    *EDGE,
]
IN_BODY: Rules = [
    (r"backbone\.(\d+)\.act", lambda match: f"body.{2 * int(match[1]) + 1}"),
    (r"backbone\.(\d+)(\.block|\.conv3x3)?", lambda match: f"body.{2 * int(match[1])}"),
]
IN_UNIT: Rules = [(r"^(weight|bias)$", r"block.\1")]


def srvgg(config: Config) -> nn.Module:
    """SRVGGNetCompact with a branch in place of every convolution, so that there is something to fuse."""
    return SRNet(
        scale=config["upscale"],
        num_blocks=config["num_conv"],
        channels=config["num_feat"],
        colors=config["num_in_ch"],
        act=config["act_type"],
        block=lambda narrow, wide: ConvBranch(ConvSpec(narrow, wide)),
    )


REPVGG_A0: Config = {"num_blocks": [2, 4, 14, 1], "width_multiplier": [0.75, 0.75, 0.75, 2.5], "num_classes": 1000}


class SqueezeExcite(nn.Module):
    """x times a gate per channel."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def repvgg_block(config: Config) -> nn.Module:
    """RepVGG's block (gate before the ReLU) and RepVGGplus' (gate after it)."""
    narrow, wide, size = config["in_channels"], config["out_channels"], config["kernel_size"]
    block = RepVGGBlock(narrow, wide, size, config["stride"], config["padding"], groups=config.get("groups", 1))
    se = SqueezeExcite(wide, wide // 16) if config.get("use_se") else None
    post_se = SqueezeExcite(wide, wide // 4) if config.get("use_post_se") else None
    return unit(block=block, se=se, act=nn.ReLU(), post_se=post_se)


def repvgg(config: Config) -> nn.Module:
    """The RepVGG classifier."""
    config = REPVGG_A0 if "create" in config else config
    groups = literal_eval(config.get("override_groups_map", "{}"))
    widths = [int(base * factor) for base, factor in zip((64, 128, 256, 512), config["width_multiplier"])]
    channels, layer, stages = 3, 0, {}
    for stage, (width, count) in enumerate(zip([min(64, widths[0]), *widths], [1, *config["num_blocks"]])):
        units = []
        for index in range(count):
            block = RepVGGBlock(channels, width, stride=1 if index else 2, groups=groups.get(layer, 1))
            units.append(unit(block=block, act=nn.ReLU()))
            channels, layer = width, layer + 1
        stages[f"stage{stage}"] = nn.Sequential(*units) if stage else units[0]
    linear = nn.Linear(channels, config["num_classes"])
    return unit(**stages, gap=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear)


IN_REPVGG: Rules = [
    (r"rbr_dense", "block.branches.0"),
    (r"rbr_1x1", "block.branches.1"),
    (r"(branches\.[01])\.bn", r"\1.norm"),
    (r"rbr_identity", "block.branches.2.norm"),
    (r"rbr_reparam", "block"),
]


def hat_block(channels: int) -> nn.Module:
    """RepSR's block in the port to HAT, whose 3x3 has no bias; therefore not `RepSRBlock`, whose 3x3 has one."""

    def path(spec: ConvSpec) -> Branch:
        wide = 2 * channels
        convs = nn.Conv2d(channels, wide, 3, bias=False), nn.Conv2d(wide, channels, 1)
        return SequentialBranch(spec, convs[0], nn.BatchNorm2d(wide), convs[1])

    return ReparamBlock(ConvSpec(channels), [IdentityBranch, path, path])


def enlarge(x: Tensor, scale: int) -> Tensor:
    """x enlarged bilinearly, which both codes add at the end."""
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


class HatNet(nn.Module):
    """The network of the port to HAT: space to depth first, and a long skip."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.s2d = config["s2d_factor"] if config["use_space_to_depth"] else 1
        self.scale = config["upscale"]
        colors, channels = config["num_in_ch"], config["num_feat"]
        layers = [layer for _ in range(config["num_blocks"]) for layer in (hat_block(channels), nn.PReLU(channels))]
        self.conv_first = nn.Conv2d(colors * self.s2d**2, channels, 3, padding=1)
        self.body = nn.Sequential(*layers)
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up = nn.Conv2d(channels, colors * (self.scale * self.s2d) ** 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(F.pixel_unshuffle(x, self.s2d))
        y = self.conv_up(self.conv_body(self.body(first)) + first)
        return F.pixel_shuffle(y, self.scale * self.s2d) + enlarge(x, self.scale)


class JldyNet(nn.Module):
    """The network of JL-DY: plain convolutions at both ends, the last one with as many channels as the body."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scale, channels = config["scale"], config["c_channel"]
        layers: list[nn.Module] = [nn.Conv2d(config["colors"], channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(config["m_block"]):
            layers += [RepSRBlock(channels), nn.PReLU(channels)]
        self.M_block = nn.Sequential(*layers, nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.M_block(x), self.scale) + enlarge(x, self.scale)


IN_HAT: Rules = [(rf"branch(\d)_{name}", rf"branches.\1.layers.{i}") for i, name in enumerate(("3x3", "bn", "1x1"))]
IN_JLDY: Rules = [(rf"branch(\d)\.{i}", rf"branches.\1.{name}") for i, name in enumerate(("expand", "norm", "squeeze"))]


def geometry(config: Config) -> dict[str, Any]:
    """What the official classes call as torch does."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups", "padding_mode")
    return {name: config[name] for name in names if name in config} | {"padding": config.get("padding", 0)}


def mobileone(config: Config) -> nn.Module:
    """MobileOne's block: gate before the ReLU."""
    block = MobileOneBlock(**geometry(config), conv_branches=config.get("num_conv_branches", 1))
    wide = config["out_channels"]
    return unit(block=block, se=SqueezeExcite(wide, wide // 16) if config.get("use_se") else None, act=nn.ReLU())


def edbb(config: Config) -> nn.Module:
    """An EDBB with its activation."""
    narrow, wide = config["inp_planes"], config["out_planes"]
    expansion = config["depth_multiplier"] if config["with_13"] else None
    block = EDBB(narrow, wide, expansion=expansion, identity=identity_option(config))
    acts = {"prelu": nn.PReLU(wide), "relu": nn.ReLU(), "linear": None}
    return unit(block=block, act=acts[config["act_type"]])


def dilated(config: Config) -> nn.Module:
    """UniRepLKNet's depthwise block."""
    channels = config["channels"]
    small = config["kernel_sizes"], config["dilates"]
    return DilatedReparamBlock(channels, kernel_size=config["kernel_size"], groups=channels, small=small)


IN_ACB: Rules = [
    (rf"{name}_(conv|bn)", lambda match, index=index: f"branches.{index}.{match[1].replace('bn', 'norm')}")
    for index, name in enumerate(("square", "ver", "hor"))
]


def in_mobileone(config: Config) -> Rules:
    """Names of MobileOne's branches, whose numbers depend on how many there are."""
    count = config.get("num_conv_branches", 1)
    point = config["kernel_size"] > 1
    return [
        (r"rbr_conv\.(\d+)", r"block.branches.\1"),
        (r"rbr_scale", f"block.branches.{count}"),
        (r"rbr_skip", f"block.branches.{count + point}.norm"),
        (r"(branches\.\d+)\.bn", r"\1.norm"),
        (r"se\.reduce", "se.down"),
        (r"se\.expand", "se.up"),
    ]


def in_dilated(config: Config) -> Rules:
    """Names of the small kernels, which say their size and dilation."""
    rules: Rules = [(r"lk_origin", "branches.0.conv"), (r"origin_bn", "branches.0.norm")]
    for index, (k, r) in enumerate(zip(config["kernel_sizes"], config["dilates"]), start=1):
        rules += [(f"dil_conv_k{k}_{r}", f"branches.{index}.conv"), (f"dil_bn_k{k}_{r}", f"branches.{index}.norm")]
    return rules


def dbb(config: Config) -> nn.Module:
    """DBB without an activation."""
    return DiverseBranchBlock(**geometry(config), hidden_channels=config.get("internal_channels_1x1_3x3"))


def in_dbb(config: Config) -> Rules:
    """Names of DBB's terms; depthwise there is no 1x1."""
    depthwise = config.get("groups", 1) == config["out_channels"]
    return [
        (r"dbb_origin\.", "branches.0."),
        (r"dbb_1x1\.", "branches.1."),
        (r"(branches\.[01])\.bn", r"\1.norm"),
        (r"dbb_avg\.bn\.bn", f"branches.{2 - depthwise}.conv_norm"),
        (r"dbb_avg\.avgbn", f"branches.{2 - depthwise}.norm"),
        (r"dbb_avg\.conv", f"branches.{2 - depthwise}.conv"),
        (r"dbb_1x1_kxk\.(id)?conv1", f"branches.{3 - depthwise}.layers.0"),
        (r"dbb_1x1_kxk\.bn1\.bn", f"branches.{3 - depthwise}.layers.1"),
        (r"dbb_1x1_kxk\.conv2", f"branches.{3 - depthwise}.layers.2"),
        (r"dbb_1x1_kxk\.bn2", f"branches.{3 - depthwise}.layers.3"),
    ]


IN_SPAN: Rules = [(r"^conv\.", "branches.1.layers."), (r"^sk\.", "branches.0.conv.")]
IN_RRRB: Rules = [
    (r"expand_conv", "branches.0.layers.0"),
    (r"fea_conv", "branches.0.layers.1.branches.0.conv"),
    (r"reduce_conv", "branches.0.layers.2"),
]
IN_EDBB: Rules = [
    (r"rep_conv\.", "block.branches.0.conv."),
    (r"conv1x1\.", "block.branches.1.conv."),
    (r"conv1x1_3x3\.k0", "block.branches.5.expand.weight"),
    (r"conv1x1_3x3\.b0", "block.branches.5.expand.bias"),
    (r"conv1x1_3x3\.k1", "block.branches.5.squeeze.weight"),
    (r"conv1x1_3x3\.b1", "block.branches.5.squeeze.bias"),
    *((rf"conv1x1_{name}", f"block.branches.{index}") for index, name in enumerate(("sbx", "sby", "lpl"), start=2)),
    *EDGE,
]


def sesr_block(config: Config) -> nn.Module:
    """SESR's block; without biases there, it has no bias here, as then their collapsed block has none either."""
    narrow, wide = config["in_filters"], config["out_filters"]
    hidden, bias = config["feature_size"], not config["bias_zero"]
    return CollapsibleLinearBlock(narrow, wide, config["kernel_size"], bias=bias, hidden_channels=hidden)


def sesr(config: Config) -> nn.Module:
    """SESR."""
    sizes = {"num_blocks": config["m"], "channels": config["int_features"], "hidden_channels": config["feature_size"]}
    return SESR(scale=config["scale"], **sizes)


IN_SESR: Rules = [
    (r"conv_kxk", "branches.0.expand"),
    (r"conv_1x1", "branches.0.squeeze"),
    (r"kernel$", "weight"),
    (r"^input", "conv_first"),
    (r"^output", "conv_last"),
    (r"^block(\d+)", lambda match: f"body.{2 * int(match[1])}"),
    (r"^prelu(\d+)\.alpha", lambda match: f"body.{2 * int(match[1]) + 1}.weight"),
]


class Kind(NamedTuple):
    """How to build what a file holds, and the names of its tensors before and after the official fusing."""

    build: Callable[[Config], nn.Module]
    rules: Rules | Callable[[Config], Rules]
    fused_rules: Rules
    unused: Callable[[Config], str] = lambda config: "(?!)"
    """Pattern of the keys of caches and placeholders, which the official unfused graph does not read."""
    reshape: Callable[[Mapping[str, Tensor], Config], Mapping[str, Tensor]] = lambda official, config: official
    """Applied to the official state dict first, where one tensor of theirs is several of ours, or of another shape."""

    def ours(self, official: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        """The official state dict under our names, without what is unused."""
        rules = self.rules(config) if callable(self.rules) else self.rules
        used = {k: v for k, v in self.reshape(official, config).items() if not re.match(self.unused(config), k)}
        return rename(used, rules)


KINDS = {
    "SeqConv3x3": Kind(seq_conv, EDGE, []),
    "ECB": Kind(ecb, IN_ECB, IN_UNIT),
    "ECBSR": Kind(ecbsr, IN_ECB + IN_BODY, IN_BODY),
    "ECBSR -> PlainSR": Kind(ecbsr, IN_ECB + IN_BODY, IN_BODY),
    "SRVGGNetCompact": Kind(srvgg, [(r"body\.(\d*[02468])\.", r"body.\1.conv.")], []),
    "RepVGGBlock": Kind(repvgg_block, IN_REPVGG, IN_UNIT),
    "RepVGGBlock(use_se)": Kind(repvgg_block, IN_REPVGG, IN_UNIT),
    "RepVGGplusBlock": Kind(repvgg_block, IN_REPVGG, IN_UNIT),
    "RepVGG": Kind(repvgg, IN_REPVGG, IN_REPVGG),
    "RepVGG-A0": Kind(repvgg, IN_REPVGG, IN_REPVGG),
    "RepSRBlock": Kind(lambda config: hat_block(config["num_feat"]), IN_HAT, []),
    "RepSR": Kind(HatNet, IN_HAT, [(r"\.rep_conv", "")]),
    "RepSR_Block": Kind(lambda config: RepSRBlock(config["c"]), IN_JLDY, []),
    "RepSR_Net": Kind(JldyNet, IN_JLDY, []),
    "ACBlock": Kind(lambda config: ACBlock(**geometry(config)), IN_ACB, []),
    "DiverseBranchBlock": Kind(dbb, in_dbb, []),
    "MobileOneBlock": Kind(mobileone, in_mobileone, IN_UNIT),
    "Conv3XC": Kind(
        lambda config: Conv3XC(config["c_in"], config["c_out"], stride=config["s"], gain=config["gain1"]),
        IN_SPAN,
        [],
        unused=lambda config: r"eval_conv\.",
    ),
    "RRRB": Kind(lambda config: RRRB(8), IN_RRRB, [(r"rep_conv\.", "")]),
    "EDBB": Kind(edbb, IN_EDBB, IN_UNIT, unused=lambda config: "(?!)" if config["with_13"] else r"conv1x1_3x3\."),
    "DilatedReparamBlock": Kind(dilated, in_dilated, []),
    "LinearBlock_e (train) -> LinearBlock_c (collapsed)": Kind(sesr_block, IN_SESR, []),
    "SESR": Kind(sesr, IN_SESR, []),
}
"""By the name of the official class, which is `block` in a file's metadata."""
