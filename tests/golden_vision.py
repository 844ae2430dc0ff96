"""The golden blocks and networks of classification: OREPA, QARepVGG, MobileOne, and how their tensors become ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from golden_nets import Config, Kind, Rules, geometry, in_mobileone, unit
from torch import Tensor, nn

from reparam import MobileOneBlock, OREPABlock, OREPARepVGGBlock, QARepVGGBlock


def orepa(config: Config) -> nn.Module:
    """OREPA and OREPA_1x1, whose kernel size goes without saying."""
    options = {"kernel_size": 1, **geometry(config), "hidden_channels": config.get("internal_channels_1x1_3x3")}
    return unit(block=OREPABlock(**options), act=nn.ReLU() if config.get("nonlinear") else None)


def of_orepa(official: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """One row of their `vector` for each term; constants and scales of the shape of a depthwise filter.

    The pointwise convolution after the depthwise one counts its output channels group by group last.
    """
    groups, found = config.get("groups", 1), {}
    for key, value in official.items():
        if key.endswith("vector"):
            found |= {f"{key}.{row}": scale for row, scale in enumerate(value)}
        elif key.endswith("_prior"):
            found[key] = value.unsqueeze(1)
        elif key.endswith("avg_avg"):
            outputs = official[key.replace("avg_avg", "avg_conv")].shape[0]
            found[key] = value.expand(outputs, 1, *value.shape)
        elif key.endswith("gconv_pw"):
            found[key] = value.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
        else:
            found[key] = value
    for key in found:
        if re.search(r"vector\.[12]$", key) and f"{key[:-2]}.3" in found:
            found[key] = found[key].reshape(-1, 1, 1, 1)
    return found


def in_orepa(prefix: str, last: int) -> Rules:
    """Names of the terms, of which the one with the depthwise convolution has the number `last`."""
    return [
        (rf"{prefix}_origin", "0.layers.0.weight"),
        (rf"{prefix}_avg_conv", "1.layers.0.weight"),
        (rf"{prefix}_avg_avg", "1.layers.1.mask"),
        (rf"{prefix}_pfir_conv", "2.layers.0.weight"),
        (rf"{prefix}_prior", "2.layers.1.mask"),
        (rf"{prefix}_1x1_kxk_(id)?conv1", "3.layers.0.weight"),
        (r"id_tensor", "3.layers.0.unit"),
        (rf"{prefix}_1x1_kxk_conv2", "3.layers.1.weight"),
        (rf"{prefix}_1x1$", "4.layers.0.weight"),
        (rf"{prefix}_gconv_dw", f"{last}.layers.0.weight"),
        (rf"{prefix}_gconv_pw", f"{last}.layers.1.weight"),
        (rf"vector\.{last}", f"{last}.layers.2.scale"),
        (r"vector\.3", "3.layers.2.scale"),
        (r"vector\.(\d)", r"\1.layers.1.scale"),
    ]


IN_OREPA: Rules = [(r"^(?!bn\.)", "block.branches."), *in_orepa("weight_orepa", 5), (r"^bn\.", "block.norm.")]
IN_OREPA_1X1: Rules = [
    (r"^(?!bn\.)", "block.branches."),
    (r"weight_or1x1_origin", "0.layers.0.weight"),
    (r"weight_or1x1_l2i_conv1", "1.layers.0.weight"),
    (r"weight_or1x1_l2i_conv2", "1.layers.1.weight"),
    (r"vector\.0", "0.layers.1.scale"),
    (r"vector\.1", "1.layers.2.scale"),
    (r"^bn\.", "block.norm."),
]
IN_OREPA_REPVGG: Rules = [
    *in_orepa("weight_rbr", 4),
    (r"rbr_dense\.bn", "block.branches.0.layers.1"),
    (r"rbr_dense\.", "block.branches.0.layers.0.branches."),
    (r"rbr_1x1\.bn", "block.branches.1.norm"),
    (r"rbr_1x1", "block.branches.1"),
    (r"rbr_identity", "block.branches.2.norm"),
    (r"rbr_reparam", "block"),
]


def orepa_vgg(config: Config) -> nn.Module:
    """The RepVGG classifier of OREPA's code, of the blocks with three batch norms."""
    widths = [int(base * factor) for base, factor in zip((64, 128, 256, 512), config["width_multiplier"])]
    channels, stages = 3, {}
    for stage, (width, count) in enumerate(zip([min(64, widths[0]), *widths], [1, *config["num_blocks"]])):
        units = []
        for index in range(count):
            block = OREPARepVGGBlock(channels, width, stride=1 if index else 2)
            units.append(unit(block=block, act=nn.ReLU()))
            channels = width
        stages[f"stage{stage}"] = nn.Sequential(*units) if stage else units[0]
    linear = nn.Linear(channels, config["num_classes"])
    return unit(**stages, gap=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear)


def qarepvgg(config: Config) -> nn.Module:
    """The block of super-gradients."""
    options = {
        name: config[name] for name in ("in_channels", "out_channels", "stride", "dilation", "groups") if name in config
    }
    options |= {"identity": config.get("use_residual_connection", True), "alpha": config.get("use_alpha", False)}
    options |= {"point_bias": config.get("use_1x1_bias", True), "sum_bn": config.get("use_post_bn", True)}
    return unit(block=QARepVGGBlock(**options), act=nn.ReLU())


def in_qarepvgg(config: Config) -> Rules:
    """Names in the block of super-gradients; with alpha the 1x1 convolution is part of a chain."""
    point = "layers.0" if config.get("use_alpha") else "conv"
    return [
        (r"branch_3x3\.bn", "block.branches.0.norm"),
        (r"branch_3x3", "block.branches.0"),
        (r"branch_1x1", f"block.branches.1.{point}"),
        (r"alpha", "block.branches.1.layers.1.scale"),
        (r"post_bn", "block.norm"),
    ]


def mobileone_s0(config: Config) -> nn.Module:
    """MobileOne-S0: depthwise and pointwise blocks in turn, each with four convolutions side by side."""
    channels, stages = 48, {"stage0": unit(block=MobileOneBlock(3, 48, stride=2), act=nn.ReLU())}
    for stage, (width, count) in enumerate(zip((48, 128, 256, 1024), (2, 8, 10, 1)), start=1):
        units = []
        for index in range(count):
            deep = MobileOneBlock(channels, stride=1 if index else 2, groups=channels, conv_branches=4)
            point = MobileOneBlock(channels, width, 1, conv_branches=4)
            units += [unit(block=block, act=nn.ReLU()) for block in (deep, point)]
            channels = width
        stages[f"stage{stage}"] = nn.Sequential(*units)
    return unit(**stages, gap=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, 1000))


def in_mobileone_s0(config: Config) -> Rules:
    """As those of one block, of which the first, the depthwise and the pointwise ones have different branches."""
    first = in_mobileone({"kernel_size": 3})
    deep = in_mobileone({"kernel_size": 3, "num_conv_branches": 4})
    point = in_mobileone({"kernel_size": 1, "num_conv_branches": 4})
    return [
        *((rf"(?<=^stage0\.){pattern}", new) for pattern, new in first[1:2]),
        *((rf"(?<=[1-4]\.[02468]\.|\.1[02468]\.){pattern}", new) for pattern, new in deep[1:3]),
        *((rf"(?<=[13579]\.){pattern}", new) for pattern, new in point[2:3]),
        *(rule for rule in first if "rbr_conv" in rule[0] or "bn" in rule[0]),
    ]


IN_UNIT: Rules = [(r"^(weight|bias)$", r"block.\1")]
FIFTH_ROW = r".*vector\.5$"  # allocated in OREPA's RepVGG block where it has an identity, but neither set nor read
KINDS = {
    "OREPA": Kind(orepa, IN_OREPA, IN_UNIT, reshape=of_orepa),
    "OREPA_1x1": Kind(orepa, IN_OREPA_1X1, IN_UNIT, reshape=of_orepa),
    "RepVGGBlock_OREPA": Kind(
        lambda config: unit(block=OREPARepVGGBlock(**geometry(config)), act=nn.ReLU()),
        IN_OREPA_REPVGG,
        IN_UNIT,
        unused=lambda config: FIFTH_ROW,
        reshape=of_orepa,
    ),
    "RepVGG(OREPA_VGG)": Kind(
        orepa_vgg, IN_OREPA_REPVGG, IN_OREPA_REPVGG, unused=lambda config: FIFTH_ROW, reshape=of_orepa
    ),
    "QARepVGGBlock": Kind(qarepvgg, in_qarepvgg, IN_UNIT, unused=lambda config: r"rbr_reparam\."),
    "MobileOne-s0": Kind(mobileone_s0, in_mobileone_s0, [(r"reparam_conv", "block")]),
}
"""By the name of the official class, which is `block` in a file's metadata."""
