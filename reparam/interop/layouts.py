"""How the papers' codes name the tensors of their blocks: one function per layout, read beside the block it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ..block import ReparamBlock
from ..blocks import (
    ECB,
    EDBB,
    RRRB,
    ACBlock,
    CollapsibleLinearBlock,
    Conv3XC,
    DilatedReparamBlock,
    DiverseBranchBlock,
    MobileOneBlock,
    RepSRBlock,
    RepVGGBlock,
)
from ..branches import Branch, IdentityBranch, SequentialBranch
from ..errors import CheckpointError
from ..spec import ConvSpec

Tensors = Mapping[str, Tensor]
Names = dict[str, "str | None"]
"""Official name to ours, of modules or of single tensors; None for what the function does not depend on."""


@dataclass(frozen=True)
class Options:
    """What a layout leaves open; see `fuse_state_dict`."""

    identity: bool | None = None
    with_13: bool = False


@dataclass(frozen=True)
class Part:
    """One of our blocks, ready to take the tensors of a state dict."""

    block: Branch
    names: Names
    fused: str
    """Where the authors' inference code has the convolution."""


@dataclass(frozen=True)
class Layout:
    """The names that give a block away, and what to build for them."""

    name: str
    marks: tuple[str, ...]
    parts: Callable[[Tensors, Options], list[Part]]
    keeps: bool
    """Whether the authors' inference code still wants the tensors of the branches."""


LAYOUTS: list[Layout] = []
"""In the order in which they are tried: a layout whose marks contain another's comes first."""


def _layout(name: str, *marks: str, keeps: bool = False):
    def register(parts: Callable[[Tensors, Options], list[Part]]) -> Callable[[Tensors, Options], list[Part]]:
        LAYOUTS.append(Layout(name, marks, parts, keeps))
        return parts

    return register


def _shape(t: Tensors, key: str) -> tuple[int, int, tuple[int, ...]]:
    """Output channels, input channels per group and kernel size of a convolution's weight."""
    if key not in t:
        raise CheckpointError(f"{key!r} is missing")
    out_channels, in_channels, *size = t[key].shape if t[key].dim() == 4 else (0, 0)
    if not size or not t[key].numel():
        raise CheckpointError(f"{key!r} must be the weight of a 2d convolution, but has shape {tuple(t[key].shape)}")
    return out_channels, in_channels, tuple(size)


def _grouped(t: Tensors, key: str, identity: str) -> tuple[int, int, tuple[int, ...], int]:
    """In, out, kernel size and groups; without an identity the groups cannot be seen, and do not matter."""
    out_channels, per_group, size = _shape(t, key)
    if identity not in t:
        return per_group, out_channels, size, 1
    channels = t[identity].numel()
    return channels, out_channels, size, max(channels // per_group, 1)


def _where_asked(options: Options, default: bool) -> bool | None:
    """The `identity` of our blocks, in which None means "where the channels match"."""
    wanted = default if options.identity is None else options.identity
    return None if wanted else False


def _norm(official: str, ours: str) -> Names:
    return {f"{official}.conv": f"{ours}.conv", f"{official}.bn": f"{ours}.norm"}


@_layout("RepVGG", "rbr_dense.conv.weight", "rbr_1x1.conv.weight")
def _repvgg(t: Tensors, options: Options) -> list[Part]:
    identity = "rbr_identity.weight" in t
    inside, outside, size, groups = _grouped(t, "rbr_dense.conv.weight", "rbr_identity.weight")
    block = RepVGGBlock(inside, outside, size, groups=groups, identity=identity)
    names = {**_norm("rbr_dense", "branches.0"), **_norm("rbr_1x1", "branches.1"), "rbr_identity": "branches.2.norm"}
    return [Part(block, names, "rbr_reparam")]


@_layout("MobileOne", "rbr_conv.0.conv.weight")
def _mobileone(t: Tensors, options: Options) -> list[Part]:
    inside, outside, size, groups = _grouped(t, "rbr_conv.0.conv.weight", "rbr_skip.weight")
    count = 0
    while f"rbr_conv.{count}.conv.weight" in t:
        count += 1
    names = {}
    for index in range(count):
        names |= _norm(f"rbr_conv.{index}", f"branches.{index}")
    point = any(k > 1 for k in size)
    names |= _norm("rbr_scale", f"branches.{count}") if point else {}
    names["rbr_skip"] = f"branches.{count + point}.norm"
    identity = "rbr_skip.weight" in t
    block = MobileOneBlock(inside, outside, size, groups=groups, conv_branches=count, identity=identity)
    return [Part(block, names, "reparam_conv")]


@_layout("DBB", "dbb_origin.conv.weight")
def _dbb(t: Tensors, options: Options) -> list[Part]:
    outside, per_group, size = _shape(t, "dbb_origin.conv.weight")
    first = "idconv1" if "dbb_1x1_kxk.idconv1.weight" in t else "conv1"
    hidden, _, _ = _shape(t, f"dbb_1x1_kxk.{first}.weight")
    groups = hidden // _shape(t, "dbb_1x1_kxk.conv2.weight")[1]
    block = DiverseBranchBlock(groups * per_group, outside, size, groups=groups, hidden_channels=hidden)
    point = "dbb_1x1.conv.weight" in t  # there is none in a depthwise block
    pool, chain = f"branches.{1 + point}", f"branches.{2 + point}.layers"
    names = {
        **_norm("dbb_origin", "branches.0"),
        **(_norm("dbb_1x1", "branches.1") if point else {}),
        "dbb_avg.conv": f"{pool}.conv",
        "dbb_avg.bn.bn": f"{pool}.conv_norm",
        "dbb_avg.avgbn": f"{pool}.norm",
        **{f"dbb_1x1_kxk.{name}": f"{chain}.{i}" for i, name in enumerate((first, "bn1.bn", "conv2", "bn2"))},
    }
    return [Part(block, names, "dbb_reparam")]


@_layout("ACB", "square_conv.weight")
def _acb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = _shape(t, "square_conv.weight")
    names: Names = {}
    for index, name in enumerate(("square", "ver", "hor")):
        names |= {f"{name}_conv": f"branches.{index}.conv", f"{name}_bn": f"branches.{index}.norm"}
    return [Part(ACBlock(inside, outside, size), names, "fused_conv")]


_EDGES = ("conv1x1_sbx", "conv1x1_sby", "conv1x1_lpl")
_EDGE = {"k0": "conv.weight", "b0": "conv.bias", "scale": "filter.scale", "bias": "filter.bias", "mask": "filter.mask"}
_PAIR = {"k0": "expand.weight", "b0": "expand.bias", "k1": "squeeze.weight", "b1": "squeeze.bias"}


def _edges(first: int) -> Names:
    return {
        f"{edge}.{name}": f"branches.{index}.{ours}"
        for index, edge in enumerate(_EDGES, start=first)
        for name, ours in _EDGE.items()
    }


def _pair(branch: int) -> Names:
    return {f"conv1x1_3x3.{name}": f"branches.{branch}.{ours}" for name, ours in _PAIR.items()}


@_layout("EDBB", "rep_conv.weight", "conv1x1.weight", "conv1x1_sbx.k0")
def _edbb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = _shape(t, "rep_conv.weight")
    hidden = _shape(t, "conv1x1_3x3.k0")[0] if options.with_13 else None
    expansion = hidden / outside if hidden else None
    block = EDBB(inside, outside, size, expansion=expansion, identity=_where_asked(options, default=False))
    names = {"rep_conv": "branches.0.conv", "conv1x1": "branches.1.conv", **_edges(2)}
    names |= _pair(5) if options.with_13 else {"conv1x1_3x3": None}
    return [Part(block, names, "rep_conv")]


@_layout("ECB", "conv3x3.weight", "conv1x1_3x3.k0", "conv1x1_sbx.k0")
def _ecb(t: Tensors, options: Options) -> list[Part]:
    outside, inside, size = _shape(t, "conv3x3.weight")
    expansion = _shape(t, "conv1x1_3x3.k0")[0] / outside
    block = ECB(inside, outside, size, expansion=expansion, identity=_where_asked(options, default=False))
    return [Part(block, {"conv3x3": "branches.0.conv", **_pair(1), **_edges(2)}, "conv3x3")]


@_layout("RepSR", "branch1.0.weight", "branch1.1.running_var", "branch2.2.weight")
def _repsr(t: Tensors, options: Options) -> list[Part]:
    wide, inside, size = _shape(t, "branch1.0.weight")
    outside = _shape(t, "branch1.2.weight")[0]
    identity = _where_asked(options, default=True)
    block = RepSRBlock(inside, outside, size, expansion=wide / outside, identity=identity)
    first = 0 if identity is False or inside != outside else 1  # the identity is branch 0
    names: Names = {
        f"branch{path + 1}.{index}": f"branches.{first + path}.{name}"
        for path in (0, 1)
        for index, name in enumerate(("expand", "norm", "squeeze"))
    }
    return [Part(block, names, "")]


@_layout("RepSR of HAT", "branch1_3x3.weight", "branch1_bn.running_var", "branch2_1x1.weight")
def _repsr_hat(t: Tensors, options: Options) -> list[Part]:
    wide, inside, size = _shape(t, "branch1_3x3.weight")
    outside = _shape(t, "branch1_1x1.weight")[0]
    identity = options.identity is not False and inside == outside

    def path(spec: ConvSpec) -> Branch:  # not RepSRBlock, whose 3x3 has a bias
        convs = nn.Conv2d(inside, wide, size, bias=False), nn.Conv2d(wide, outside, 1)  # type: ignore[arg-type]
        return SequentialBranch(spec, convs[0], nn.BatchNorm2d(wide), convs[1])

    block = ReparamBlock(ConvSpec(inside, outside, size), [path, path, *[IdentityBranch] * identity])
    names: Names = {
        f"branch{index + 1}_{name}": f"branches.{index}.layers.{layer}"
        for index in (0, 1)
        for layer, name in enumerate(("3x3", "bn", "1x1"))
    }
    return [Part(block, names, "rep_conv")]


@_layout("SPAN's Conv3XC", "conv.0.weight", "conv.1.weight", "conv.2.weight", "sk.weight", keeps=True)
def _conv3xc(t: Tensors, options: Options) -> list[Part]:
    wide, inside, _ = _shape(t, "conv.0.weight")
    outside, _, size = _shape(t, "sk.weight")[0], *_shape(t, "conv.1.weight")[1:]
    names: Names = {"conv": "branches.1.layers", "sk": "branches.0.conv"}
    return [Part(Conv3XC(inside, outside, size, gain=wide // inside), names, "eval_conv")]


@_layout("FMEN's RRRB", "expand_conv.weight", "fea_conv.weight", "reduce_conv.weight")
def _rrrb(t: Tensors, options: Options) -> list[Part]:
    wide, inside, _ = _shape(t, "expand_conv.weight")
    outside = _shape(t, "reduce_conv.weight")[0]
    block = RRRB(inside, outside, _shape(t, "fea_conv.weight")[2], expansion=wide // inside)
    names: Names = {
        "expand_conv": "branches.0.layers.0",
        "fea_conv": "branches.0.layers.1.branches.0.conv",
        "reduce_conv": "branches.0.layers.2",
    }
    return [Part(block, names, "rep_conv")]


@_layout("FMEN's HFAB", "bn1.running_var", "squeeze.weight", "bn2.running_var", "excitate.weight", "bn3.running_var")
def _hfab(t: Tensors, options: Options) -> list[Part]:
    parts = []
    for name, before, after in (("squeeze", "bn1", None), ("excitate", "bn2", "bn3")):
        outside, inside, size = _shape(t, f"{name}.weight")
        stages: list[nn.Module] = [nn.BatchNorm2d(inside), nn.Conv2d(inside, outside, size)]  # type: ignore[arg-type]
        stages += [nn.BatchNorm2d(outside)] if after else []
        names: Names = {before: "layers.0", name: "layers.1"}
        names |= {after: "layers.2"} if after else {}
        parts.append(Part(SequentialBranch(ConvSpec(inside, outside, size), *stages), names, name))
    return parts


@_layout("UniRepLKNet", "lk_origin.weight", "origin_bn.running_var")
def _unireplknet(t: Tensors, options: Options) -> list[Part]:
    channels, _, size = _shape(t, "lk_origin.weight")
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
    block = DilatedReparamBlock(channels, kernel_size=size, groups=channels, small=(sizes, rates))
    return [Part(block, names, "lk_origin")]


_CONV_BN = {"conv": "conv", "bn": "norm"}


def _sesr(t: Tensors, options: Options, first: str, second: str, weight: str) -> list[Part]:
    hidden, inside, size = _shape(t, f"{first}.{weight}")
    outside = _shape(t, f"{second}.{weight}")[0]
    identity = _where_asked(options, default=True)
    block = CollapsibleLinearBlock(inside, outside, size, hidden_channels=hidden, identity=identity)
    names: Names = {}
    for official, ours in ((first, "branches.0.expand"), (second, "branches.0.squeeze")):
        names |= {f"{official}.{weight}": f"{ours}.weight", f"{official}.bias": f"{ours}.bias"}
    return [Part(block, names, "")]


for _first, _second, _weight in (
    ("conv_kxk", "conv_1x1", "kernel"),
    ("conv_kxk", "conv_1x1", "weight"),
    ("conv_expand", "conv_squeeze", "weight"),
):
    _marks = (f"{_first}.{_weight}", f"{_second}.{_weight}")
    _layout("SESR", *_marks)(partial(_sesr, first=_first, second=_second, weight=_weight))
