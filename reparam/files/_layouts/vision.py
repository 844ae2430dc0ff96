"""The blocks of classification and detection: one function per layout. Read each next to the block that it builds."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ...algebra._spec import ConvSpec
from ...blocks import (
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    MobileOneBlock,
    OREPABlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    RepVGGBlock,
)
from ...branches import Branch, ChannelScale, ConvBNBranch, SequentialBranch
from ...errors import CheckpointError
from .base import Names, Options, Part, Tensors, conv_bn, grouped, inputs_of, layout, shape, where_asked

_GATE_AND_ACT = ("se", "post_se", "nonlinearity", "nonlinear", "activation", "act")


@layout("RepVGG", "rbr_dense.conv.weight", "rbr_1x1.conv.weight", beside=_GATE_AND_ACT)
def _repvgg(t: Tensors, options: Options) -> list[Part]:
    identity = "rbr_identity.weight" in t
    inside, outside, size, groups = grouped(t, "rbr_dense.conv.weight", "rbr_identity.weight")
    block = partial(RepVGGBlock, inside, outside, size, groups=groups, identity=identity)
    names = {
        **conv_bn("rbr_dense", "branches.0"),
        **conv_bn("rbr_1x1", "branches.1"),
        "rbr_identity": "branches.2.norm",
    }
    return [Part(block, names, "rbr_reparam")]


@layout("QARepVGG", "rbr_dense.conv.weight", "rbr_1x1.weight", "bn.running_var", beside=_GATE_AND_ACT)
def _qarepvgg(t: Tensors, options: Options) -> list[Part]:
    outside, _, size = shape(t, "rbr_dense.conv.weight")
    inside, groups = inputs_of(t, "rbr_dense.conv.weight", options, pool=True)
    options.ask("eps")
    sizes: Any = {"groups": groups, "identity": where_asked(options, default=True), "pool": bool(options.pool)}
    block = partial(QARepVGGBlock, inside, outside, size, **sizes)
    names = {**conv_bn("rbr_dense", "branches.0"), "rbr_1x1": "branches.1.conv", "bn": "norm"}
    return [Part(block, names, "rbr_reparam")]


@layout("QARepVGG of super-gradients", "branch_3x3.conv.weight", "branch_1x1.weight", beside=_GATE_AND_ACT)
def _qarepvgg_super_gradients(t: Tensors, options: Options) -> list[Part]:
    outside, _, size = shape(t, "branch_3x3.conv.weight")
    inside, groups = inputs_of(t, "branch_3x3.conv.weight", options, pool=False)
    options.ask("eps")
    bias, alpha, after = (key in t for key in ("branch_1x1.bias", "alpha", "post_bn.running_var"))
    sizes: Any = {"groups": groups, "identity": where_asked(options, default=True), "point_bias": bias}
    block = partial(QARepVGGBlock, inside, outside, size, alpha=alpha, sum_bn=after, **sizes)
    point = "branches.1.layers.0" if alpha else "branches.1.conv"
    names: Names = {**conv_bn("branch_3x3", "branches.0"), "branch_1x1": point, "post_bn": "norm"}
    names |= {"alpha": "branches.1.layers.1.scale", "rbr_reparam": None}  # a placeholder for the fused convolution
    return [Part(block, names, "rbr_reparam")]


def _orepa_terms(t: Tensors, kind: str, ours: str, groups: int) -> tuple[Names, dict[str, Tensor]]:
    """OREPA's terms under `ours`: the names of those that are renamed, and the tensors that are reshaped."""
    point = [("1x1", "4.layers.0.weight")] if f"{kind}_1x1" in t else []  # not in the block of RepVGG's shape
    last = 4 + len(point)
    inner = "1x1_kxk_idconv1" if f"{kind}_1x1_kxk_idconv1" in t else "1x1_kxk_conv1"
    plain = [("origin", "0.layers.0.weight"), ("avg_conv", "1.layers.0.weight"), ("pfir_conv", "2.layers.0.weight")]
    plain += [(inner, "3.layers.0.weight"), ("1x1_kxk_conv2", "3.layers.1.weight"), *point]
    plain += [("gconv_dw", f"{last}.layers.0.weight")]
    names: Names = {f"{kind}_{name}": f"{ours}.{place}" for name, place in plain}
    root = kind.rpartition(".")[0]
    vector, unit = (f"{root}.{name}".removeprefix(".") for name in ("vector", "id_tensor"))
    equal = shape(t, f"{kind}_{inner}")[0] == groups * shape(t, f"{kind}_{inner}")[1]
    names[unit] = f"{ours}.3.layers.0.unit" if point or equal else None
    outside = shape(t, f"{kind}_origin")[0]
    reshaped = ("avg_avg", "prior", "gconv_pw")
    for key in (vector, *(f"{kind}_{name}" for name in reshaped)):
        if key not in t:
            raise CheckpointError(f"{key!r} is missing")
        names[key] = None
    mean, wave, pointwise = (t[f"{kind}_{name}"] for name in reshaped)
    given = {f"{ours}.1.layers.1.mask": mean.expand(outside, 1, *mean.shape)}
    given[f"{ours}.2.layers.1.mask"] = wave.unsqueeze(1)
    # Their pointwise convolution counts its output channels group by group last.
    given[f"{ours}.{last}.layers.1.weight"] = pointwise.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
    stages = [1, 1, 1, 2, *[1] * len(point), 2]
    for row, stage in enumerate(stages):
        scale = t[vector][row]
        given[f"{ours}.{row}.layers.{stage}.scale"] = scale.reshape(-1, 1, 1, 1) if row in (1, 2) else scale
    return names, given


@layout("OREPA's RepVGG", "rbr_dense.weight_rbr_origin", "rbr_1x1.conv.weight", beside=_GATE_AND_ACT)
def _orepa_repvgg(t: Tensors, options: Options) -> list[Part]:
    inside, outside, size, groups = grouped(t, "rbr_dense.weight_rbr_origin", "rbr_identity.weight")
    hidden, expansion = _orepa_widths(t, "rbr_dense.weight_rbr", inside)
    _check_identity("idconv1" if "rbr_dense.weight_rbr_1x1_kxk_idconv1" in t else "conv1", hidden, inside)
    sizes: Any = {"groups": groups, "hidden_channels": hidden, "expansion": expansion}
    block = partial(OREPARepVGGBlock, inside, outside, size, identity="rbr_identity.weight" in t, **sizes)
    names, given = _orepa_terms(t, "rbr_dense.weight_rbr", "branches.0.layers.0.branches", groups)
    names |= {"rbr_dense.bn": "branches.0.layers.1", **conv_bn("rbr_1x1", "branches.1")}
    return [Part(block, {**names, "rbr_identity": "branches.2.norm"}, "rbr_reparam", given)]


@layout("OREPA", "weight_orepa_origin", "bn.running_var", beside=_GATE_AND_ACT)
def _orepa(t: Tensors, options: Options) -> list[Part]:
    outside, per_group, size = shape(t, "weight_orepa_origin")
    hidden = shape(t, "weight_orepa_1x1_kxk_idconv1")[0]
    groups = hidden // shape(t, "weight_orepa_1x1_kxk_conv2")[1]
    hidden, expansion = _orepa_widths(t, "weight_orepa", groups * per_group)
    sizes: Any = {"groups": groups, "hidden_channels": hidden, "expansion": expansion}
    names, given = _orepa_terms(t, "weight_orepa", "branches", groups)
    block = partial(OREPABlock, groups * per_group, outside, size, **sizes)
    return [Part(block, {**names, "bn": "norm"}, "orepa_reparam", given)]


def _orepa_widths(t: Tensors, kind: str, inside: int) -> tuple[int, int]:
    """Rows of the inner 1x1, and channels of the depthwise convolution per input channel."""
    inner = "1x1_kxk_idconv1" if f"{kind}_1x1_kxk_idconv1" in t else "1x1_kxk_conv1"
    return shape(t, f"{kind}_{inner}")[0], shape(t, f"{kind}_gconv_dw")[0] // inside


@layout("OREPA 1x1", "weight_or1x1_origin", "vector", "bn.running_var", beside=_GATE_AND_ACT)
def _orepa_1x1(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "weight_or1x1_origin")
    block = partial(OREPABlock, inside, outside, size, hidden_channels=shape(t, "weight_or1x1_l2i_conv1")[0])
    names: Names = {"weight_or1x1_origin": "branches.0.layers.0.weight", "vector": None, "bn": "norm"}
    names |= {f"weight_or1x1_l2i_conv{i + 1}": f"branches.1.layers.{i}.weight" for i in (0, 1)}
    scales = {f"branches.{row}.layers.{row + 1}.scale": scale for row, scale in enumerate(t["vector"])}
    return [Part(block, names, "or1x1_reparam", scales)]


@layout("MobileOne", "rbr_conv.0.conv.weight", beside=_GATE_AND_ACT)
def _mobileone(t: Tensors, options: Options) -> list[Part]:
    inside, outside, size, groups = grouped(t, "rbr_conv.0.conv.weight", "rbr_skip.weight")
    count = 0
    while f"rbr_conv.{count}.conv.weight" in t:
        count += 1
    names: Names = {}
    for index in range(count):
        names |= conv_bn(f"rbr_conv.{index}", f"branches.{index}")
    point = any(k > 1 for k in size)
    names |= conv_bn("rbr_scale", f"branches.{count}") if point else {}
    names["rbr_skip"] = f"branches.{count + point}.norm"
    identity = "rbr_skip.weight" in t
    block = partial(MobileOneBlock, inside, outside, size, groups=groups, conv_branches=count, identity=identity)
    return [Part(block, names, "reparam_conv")]


@layout("DBB", "dbb_origin.conv.weight", beside=_GATE_AND_ACT)
def _dbb(t: Tensors, options: Options) -> list[Part]:
    outside, per_group, size = shape(t, "dbb_origin.conv.weight")
    first = "idconv1" if "dbb_1x1_kxk.idconv1.weight" in t else "conv1"
    hidden, _, _ = shape(t, f"dbb_1x1_kxk.{first}.weight")
    groups = hidden // shape(t, "dbb_1x1_kxk.conv2.weight")[1]
    _check_identity(first, hidden, groups * per_group)
    block = partial(DiverseBranchBlock, groups * per_group, outside, size, groups=groups, hidden_channels=hidden)
    point = "dbb_1x1.conv.weight" in t  # a depthwise block has none
    pool, chain = f"branches.{1 + point}", f"branches.{2 + point}.layers"
    names = {
        **conv_bn("dbb_origin", "branches.0"),
        **(conv_bn("dbb_1x1", "branches.1") if point else {}),
        "dbb_avg.conv": f"{pool}.conv",
        "dbb_avg.bn.bn": f"{pool}.conv_norm",
        "dbb_avg.avgbn": f"{pool}.norm",
        **{f"dbb_1x1_kxk.{name}": f"{chain}.{i}" for i, name in enumerate((first, "bn1.bn", "conv2", "bn2"))},
    }
    return [Part(block, names, "dbb_reparam")]


def _check_identity(name: str, hidden: int, inside: int) -> None:
    """Check the name of the inner 1x1: `idconv1` if it is square, and then an identity is added to it."""
    if ("id" in name) != (hidden == inside):
        raise CheckpointError(
            f"{name!r} has {hidden} output channels for {inside} input channels; if the two are equal it must be "
            "called idconv1, as an identity is added to it, and otherwise conv1"
        )


@layout("ACB", "square_conv.weight", beside=_GATE_AND_ACT)
def _acb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = shape(t, "square_conv.weight")
    names: Names = {}
    for index, name in enumerate(("square", "ver", "hor")):
        names |= {f"{name}_conv": f"branches.{index}.conv", f"{name}_bn": f"branches.{index}.norm"}
    return [Part(partial(ACBlock, inside, outside, size), names, "fused_conv")]


_CONV_BN = {"conv": "conv", "bn": "norm"}
_AROUND = ("norm.running_var", "pwconv2.0.weight", "pwconv2.2.running_var")
_BESIDE = ("se", "pwconv1", "act")


@layout("UniRepLKNet's block", "dwconv.lk_origin.weight", "dwconv.origin_bn.running_var", *_AROUND, beside=_BESIDE)
def _unireplknet_block(t: Tensors, options: Options) -> list[Part]:
    (dilated,) = _unireplknet({key.removeprefix("dwconv."): tensor for key, tensor in t.items()}, options)
    names = {f"dwconv.{official}": ours for official, ours in dilated.names.items()}
    block = partial(dilated.block, sum_bn=True)
    return [Part(block, {**names, "norm": "norm"}, "dwconv.lk_origin"), _end_of_ffn(t)]


@layout("UniRepLKNet's small block", "dwconv.weight", *_AROUND, beside=_BESIDE)
def _unireplknet_small_block(t: Tensors, options: Options) -> list[Part]:
    channels, _, size = shape(t, "dwconv.weight")
    block = partial(ConvBNBranch, ConvSpec(channels, kernel_size=size, groups=channels), bias="dwconv.bias" in t)
    return [Part(block, {"dwconv": "conv", "norm": "norm"}, "dwconv"), _end_of_ffn(t)]


def _end_of_ffn(t: Tensors) -> Part:
    """The last linear layer, with the shift before it, the batch norm after it and the scale of the residual."""
    weight = t["pwconv2.0.weight"].double()
    outside, inside = weight.shape
    given = {"layers.0.weight": weight[..., None, None], "layers.0.bias": weight.new_zeros(outside)}
    if "act.1.beta" in t:
        given["layers.0.bias"] = weight @ t["act.1.beta"].double().flatten()
    if "pwconv2.0.bias" in t:
        given["layers.0.bias"] = given["layers.0.bias"] + t["pwconv2.0.bias"].double()
    if "gamma" in t:
        given["layers.2.scale"] = t["gamma"]
    block = partial(_scaled_linear, ConvSpec(inside, outside, 1), scaled="gamma" in t)
    names: Names = {"pwconv2.0": None, "pwconv2.2": "layers.1", "act.1.beta": None, "gamma": None}
    return Part(block, names, "pwconv2.0", given, "UniRepLKNet's linear layer")


def _scaled_linear(spec: ConvSpec, scaled: bool) -> Branch:
    channels = spec.out_channels
    scale = [ChannelScale(channels, spec.ndim)] * scaled
    return SequentialBranch(spec, spec.new_conv(), nn.BatchNorm2d(channels), *scale)


@layout("UniRepLKNet", "lk_origin.weight", "origin_bn.running_var", inside_of=("norm.running_var", "pwconv2.*"))
def _unireplknet(t: Tensors, options: Options) -> list[Part]:
    channels, _, size = shape(t, "lk_origin.weight")
    names: Names = {"lk_origin": "branches.0.conv", "origin_bn": "branches.0.norm"}
    small = []
    for key in t:  # dil_conv_k3_2.weight: 3x3, taps 2 pixels apart
        kind, _, rest = key.removesuffix(".weight").partition("_conv_k")
        if kind != "dil" or not rest.replace("_", "").isdigit():
            continue
        small.append(tuple(map(int, rest.split("_"))))
        names |= {f"dil_{kind}_k{rest}": f"branches.{len(small)}.{ours}" for kind, ours in _CONV_BN.items()}
    pairs = [pair for pair in small if len(pair) == 2]
    sizes, rates = [k for k, _ in pairs], [r for _, r in pairs]
    block = partial(DilatedReparamBlock, channels, kernel_size=size, groups=channels, small=(sizes, rates))
    return [Part(block, names, "lk_origin")]
