"""What hypothesis draws: geometries and seeds, never tensor elements. Sizes are small and mostly different."""

from __future__ import annotations

from functools import partial

from hypothesis import strategies as st

from reparam import (
    ECB,
    EDBB,
    RRRB,
    ACBlock,
    AvgPoolBranch,
    Branch,
    ChunkConv,
    CollapsibleLinearBlock,
    Conv3XC,
    ConvBNBranch,
    ConvBranch,
    ConvSpec,
    DilatedReparamBlock,
    DiverseBranchBlock,
    ExpandSqueezeBranch,
    IdentityBranch,
    LaplacianBranch,
    LoRABlock,
    LoRABranch,
    MBRConvBlock,
    MobileOneBlock,
    OmniShift,
    OREPABlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    ReparamBlock,
    RepDWConvM,
    RepDWConvS,
    RepMBConvBlock,
    RepRFNBlock,
    RepRLFNBlock,
    RepSRBlock,
    RepVGGBlock,
    RepVGGDW,
    RTMoSRRepConv,
    ScaledBranch,
    SequentialBranch,
    SliceBranch,
    SobelBranch,
    VGGBlock,
)
from reparam.algebra._axes import CONV, NORM
from reparam.algebra._spec import PADDING_MODES, center
from reparam.blocks._block import BranchFactory
from reparam.blocks._conv_block import ConvBlock
from reparam.branches._identity import has_identity

seeds = st.integers(0, 2**31 - 1)


def of_spec(block: type[ConvBlock], spec: ConvSpec, **options) -> Branch:
    """A paper's block of this geometry."""
    arguments = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    return block(**arguments, **options)


def stack(spec: ConvSpec) -> Branch:
    """1x1, BN, k x k, BN, 1x1: a batch norm on either side of the spatial operation."""
    conv, norm = CONV[spec.ndim], NORM[spec.ndim]
    wide = 2 * spec.groups
    geometry = {"stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups}
    layers = (
        conv(spec.in_channels, wide, 1, groups=spec.groups),
        norm(wide),
        conv(wide, 3 * spec.groups, spec.kernel_size, **geometry),
        norm(3 * spec.groups, eps=1e-3),
        conv(3 * spec.groups, spec.out_channels, 1, groups=spec.groups, bias=False),
    )
    return SequentialBranch(spec, *layers)


def two_spatial(spec: ConvSpec) -> Branch:
    """k1 x k1, then k2 x k2 depthwise, which together have the taps of the spec."""
    conv = CONV[spec.ndim]
    first = tuple(center(k) + 1 for k in spec.kernel_size)
    second = tuple(k - k1 + 1 for k, k1 in zip(spec.kernel_size, first))
    layers = (
        conv(spec.in_channels, spec.out_channels, first, dilation=spec.dilation, groups=spec.groups),
        conv(spec.out_channels, spec.out_channels, second, dilation=spec.dilation, groups=spec.out_channels),
    )
    return SequentialBranch(spec.replace(stride=1), *layers)


def half(spec: ConvSpec, branch: BranchFactory) -> Branch:
    """A branch from the second half of the channels to the first one, or of the second half of the groups."""
    each = spec.in_channels // spec.groups if spec.groups > 1 else 1
    channels = spec.in_channels // each // 2 * each, spec.in_channels
    outputs = None if spec.groups > 1 else (0, spec.out_channels - spec.out_channels // 2)
    return SliceBranch(spec, branch, channels=channels, outputs=outputs)


def scaled_block(spec: ConvSpec) -> Branch:
    """A block of two branches, one of them a part with a scale of its own, as a branch."""
    part = partial(ScaledBranch, branch=partial(half, branch=ConvBNBranch))
    return ReparamBlock(spec, [part, ConvBNBranch])


KINDS = {
    "IdentityBranch": IdentityBranch,
    "IdentityBranch bn": partial(IdentityBranch, bn=True),
    "ConvBranch": ConvBranch,
    "ConvBranch 1x1": partial(ConvBranch, kernel_size=1),
    "ConvBNBranch": ConvBNBranch,
    "ExpandSqueezeBranch": partial(ExpandSqueezeBranch, bn=True),
    "ExpandSqueezeBranch 1x1-kxk": partial(ExpandSqueezeBranch, order="1x1-kxk"),
    "ExpandSqueezeBranch 1x1-bn-kxk": partial(ExpandSqueezeBranch, order="1x1-kxk", bn=True, bias=False),
    "LoRABranch": partial(LoRABranch, rank=2, alpha=3.0),
    "ScaledBranch": partial(ScaledBranch, branch=ConvBNBranch),
    "ScaledBranch block": partial(ScaledBranch, branch=scaled_block, shared=True),
    "SliceBranch": partial(half, branch=ConvBNBranch),
    "SliceBranch stack": partial(half, branch=stack),
    "SobelBranch": SobelBranch,
    "LaplacianBranch": LaplacianBranch,
    "AvgPoolBranch": AvgPoolBranch,
    "AvgPoolBranch bn": partial(AvgPoolBranch, bn=True),
    "SequentialBranch": stack,
    "SequentialBranch two spatial": two_spatial,
    "ReparamBlock": lambda spec: ReparamBlock(spec, [ConvBNBranch, ConvBranch], bn=spec.bias),
    "ReparamBlock nested": lambda spec: ReparamBlock(spec, [lambda s: ReparamBlock(s, [ConvBranch]), ConvBNBranch]),
    "RepSRBlock": partial(of_spec, RepSRBlock, gain=1.0),
    "ECB": partial(of_spec, ECB, identity=None),
    "RepVGGBlock": partial(of_spec, RepVGGBlock),
    "ACBlock": partial(of_spec, ACBlock),
    "MobileOneBlock": partial(of_spec, MobileOneBlock, conv_branches=2),
    "DiverseBranchBlock": partial(of_spec, DiverseBranchBlock),
    "CollapsibleLinearBlock": partial(of_spec, CollapsibleLinearBlock, hidden_channels=12),
    "Conv3XC": partial(of_spec, Conv3XC),
    "RRRB": partial(of_spec, RRRB),
    "EDBB": partial(of_spec, EDBB, expansion=2.0),
    "DilatedReparamBlock": partial(of_spec, DilatedReparamBlock, small=([1, 2], [1, 2])),
    "OREPABlock": partial(of_spec, OREPABlock, expansion=2),
    "OREPARepVGGBlock": partial(of_spec, OREPARepVGGBlock, expansion=2),
    "QARepVGGBlock": partial(of_spec, QARepVGGBlock, alpha=True, point_bias=True),
    "QARepVGGBlock pool": partial(of_spec, QARepVGGBlock, pool=True, sum_bn=False),
    "RepRFNBlock": partial(of_spec, RepRFNBlock),
    "RepMBConvBlock": partial(of_spec, RepMBConvBlock),
    "MBRConvBlock": partial(of_spec, MBRConvBlock, expansion=2),
    "RTMoSRRepConv": partial(of_spec, RTMoSRRepConv),
    "OmniShift": partial(of_spec, OmniShift),
    "OmniShift shared": lambda spec: of_spec(OmniShift, spec, shared=True, conv_bias=spec.bias),
    "RepRLFNBlock": partial(of_spec, RepRLFNBlock),
    "RepDWConvS": partial(of_spec, RepDWConvS),
    "RepDWConvM": partial(of_spec, RepDWConvM),
    "ChunkConv": partial(of_spec, ChunkConv),
    "LoRABlock": partial(of_spec, LoRABlock, rank=2),
    "RepVGGDW": partial(of_spec, RepVGGDW),
    "RepVGGDW yolov10": partial(of_spec, RepVGGDW, small_bn=True, identity=False, sum_bn=False),
    "VGGBlock": partial(of_spec, VGGBlock),
    "MBRConvBlock own": partial(of_spec, MBRConvBlock, expansion=1, shared=False),
}
"""Everything that must obey the contract, by name; each takes a spec."""

WITH_THREE_TAPS = ("SobelBranch", "LaplacianBranch", "ECB", "EDBB", "DilatedReparamBlock", "RepRFNBlock")
"""Kinds with edge filters or small kernels inside of the large one."""

WITH_IDENTITY = ("IdentityBranch", "ChunkConv")
"""Kinds that need equal channels and stride 1."""

WITH_SUM_BN = ("OREPABlock", "QARepVGGBlock", "RepVGGDW")
"""Kinds with a batch norm after the sum, which has a bias."""


def fits(kind: str, spec: ConvSpec) -> bool:
    """Whether this kind exists in this geometry."""
    if kind.startswith(WITH_IDENTITY):
        return has_identity(spec)
    if kind.startswith(("AvgPoolBranch", "DiverseBranchBlock", "QARepVGGBlock pool")):
        return all(d == 1 for d in spec.dilation)
    if kind in WITH_THREE_TAPS:
        return all(k >= 3 for k in spec.kernel_size)
    return spec.bias or kind not in WITH_SUM_BN


@st.composite
def specs(draw, kind: str | None = None) -> ConvSpec:
    """Any geometry: 1d to 3d, odd and even taps, stride, dilation, groups, every padding."""
    ndim = draw(st.sampled_from([2, 2, 2, 1, 3]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    inside, outside = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    if kind is not None and kind.startswith(WITH_IDENTITY):
        outside = inside
    high = 5 if ndim < 3 else 3
    low = 3 if kind in WITH_THREE_TAPS else 1
    size = tuple(draw(st.integers(low, high)) for _ in range(ndim))
    plain = kind is not None and kind.startswith(WITH_IDENTITY)
    stride = 1 if plain else draw(st.sampled_from([1, 1, 1, 2, 3]))
    pooled = kind is not None and kind.startswith(("AvgPool", "DiverseBranch", "QARepVGGBlock pool"))
    odd = (1, 3) if plain else (1, 1, 2, 3)
    dilation = 1 if pooled else tuple(draw(st.sampled_from(odd)) for _ in range(ndim))
    paddings = [0, 1, 2, "valid"]
    if stride == 1:
        paddings += ["same", None, None, None]
    padding = draw(st.sampled_from(paddings))
    mode = draw(st.sampled_from(["zeros", *PADDING_MODES]))
    bias = kind in WITH_SUM_BN or draw(st.booleans())
    return ConvSpec(inside, outside, size, stride, padding, dilation, groups, bias, mode, ndim=ndim)


@st.composite
def cases(draw) -> tuple[str, ConvSpec, int, tuple[int, ...]]:
    """A kind, a geometry that it exists in, a seed, and the size of an image on which the output is not empty."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    spec = draw(specs(kind).filter(lambda spec: fits(kind, spec)))
    if kind == "SequentialBranch two spatial":
        spec = spec.replace(stride=1)
    size = []
    for k, d, s, pads in zip(spec.kernel_size, spec.dilation, spec.stride, spec.pads):
        least = max(d * (k - 1) + 1 - sum(pads), 1, *(p + 1 for p in pads))  # reflect needs more pixels than it pads
        size.append(least + s + draw(st.integers(0, 3)))
    return kind, spec, draw(seeds), tuple(size)
