"""OREPA: a sum of kernels, each with a learned scale per channel, and one batch norm after the sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, pi

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..algebra import _kernels as kernels
from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice, make_norm
from ..branches import Branch, ConvBNBranch, SequentialBranch
from ..branches._identity import identities
from ..branches._stages import ChannelScale, FixedFilter, IdentityPlusPoint
from ..errors import SpecError
from ._block import BranchFactory, ReparamBlock
from ._conv_block import ConvBlock


class OREPABlock(ConvBlock):
    r"""The block of OREPA, equal to one k x k convolution.

    $$y = \mathrm{BN}\Big(\big(s_0 W_0 + s_1 (A \odot W_1) + s_2 (F \odot W_2) + s_3\, W_3' (I + W_3) + s_4 W_4
      + s_5\, W_5' D\big) * x\Big)$$

    $W_0$ and $W_3'$ have k x k taps, $W_1$ to $W_4$ and $W_5'$ have one, and D is depthwise with `expansion` times the
    channels. A is the mean over the window, F a fixed cosine per output channel, and the $s_j$ are (out,). No
    convolution has a bias. With one tap per axis the sum is $s_0 W_0 + s_1 W_1' W_1$, and whichever of $W_1, W_1'$ is
    square starts as the identity. No term has its own batch norm, so training runs one convolution and then the batch
    norm.

    Source: M. Hu, J. Feng, J. Hua, B. Lai, J. Huang, X. Gong, X. Hua, "Online Convolutional Re-parameterization", CVPR
    2022, arXiv 2204.00826. Scales, initial values and the order of the terms are those of the classes OREPA and
    OREPA_1x1 in the authors' code. Their code fills F for three taps only (a larger one stays partly uninitialized) and
    has groups only for k > 1; here the cosine spans any number of taps and axes.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`; the batch norm needs `bias=True`.
        hidden_channels: rows of $W_3$; None means in_channels, and twice that with more than 4 groups. With one tap,
            rows of $W_1$; None means the smaller of in_channels and out_channels.
        expansion: channels of D per input channel.
        scales: initial values of $s_0$ to $s_5$; None means (0.25, 0.25, 0, 0.5, 1, 0.5), and (1, 0.5) with one tap.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, `bias=False`, or a wrong number of scales.

    Example:
        >>> block = OREPABlock(4, 6)
        >>> x = torch.rand(2, 4, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    sum_bn = True
    hidden_channels: int | None = None
    expansion: int = 8
    scales: Sequence[float] | None = None

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The six terms, or two for a 1x1."""
        if all(k == 1 for k in spec.kernel_size):
            hidden = min(spec.in_channels, spec.out_channels) if self.hidden_channels is None else self.hidden_channels
            return _scaled([partial(_dense, slope=1.0), partial(_two_points, hidden=hidden)], self.scales, (1.0, 0.5))
        usual = spec.in_channels * (1 if spec.groups <= 4 else 2)
        hidden = usual if self.hidden_channels is None else self.hidden_channels
        terms: list[Callable] = [_dense, _mean, _cosine, partial(_point_then_dense, hidden=hidden), _point]
        terms += [partial(_separable, expansion=self.expansion)]
        return _scaled(terms, self.scales, (0.25, 0.25, 0.0, 0.5, 1.0, 0.5))


class OREPARepVGGBlock(ConvBlock):
    r"""RepVGG's block with OREPA's terms instead of its k x k convolution.

    $$y = \mathrm{BN}_3(W_{\mathrm{OREPA}} * x) + \mathrm{BN}_1(W_{1\times1} * x) + \mathrm{BN}_0(x)$$

    $W_{\mathrm{OREPA}}$ is the sum in `OREPABlock` without its 1x1 term $s_4 W_4$. The last term exists if the geometry
    has an identity.

    Source: as `OREPABlock`, class RepVGGBlock_OREPA of the authors' code, which fails with groups.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        hidden_channels: rows of $W_3$; None means in_channels, and twice that if depthwise. The identity is added to
            $W_3$ only if this equals in_channels.
        expansion: channels of the depthwise convolution per input channel.
        scales: initial values of $s_0, s_1, s_2, s_3, s_5$; None means (0.25, 0.25, 0, 0.5, 0.5).
        identity: whether there is an identity branch; None means yes if the geometry has one.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, a wrong number of scales, or `identity=True` if it has no
            identity.

    Example:
        >>> block = OREPARepVGGBlock(4, 6, stride=2)
        >>> x = torch.rand(2, 4, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    hidden_channels: int | None = None
    expansion: int = 8
    scales: Sequence[float] | None = None
    identity: bool | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The sum of terms, the 1x1 convolution, and the identity, if any."""
        usual = spec.in_channels * (1 if spec.groups < spec.out_channels else 2)
        hidden = usual if self.hidden_channels is None else self.hidden_channels
        inner = partial(_point_then_dense, hidden=hidden, unit=hidden == spec.in_channels)
        kinds: list[Callable] = [_dense, _mean, _cosine, inner, partial(_separable, expansion=self.expansion)]
        terms = _scaled([partial(kind, slope=1.0) for kind in kinds], self.scales, (0.25, 0.25, 0.0, 0.5, 0.5))
        sum_of_terms = partial(_normed_sum, terms=terms, bn=self.bn)
        point = partial(ConvBNBranch, kernel_size=1, bn=self.bn)
        return [sum_of_terms, point, *identities(spec, self.identity, bn=self.bn)]


def cosines(spec: ConvSpec) -> Tensor:
    r"""The fixed cosines F, (out, 1, *size): cos(pi (t + 1/2) f / k) along one axis, constant along the others.

    The channels are split among the axes in turn; along each axis f = 1, 2, ...
    """
    each, waves = spec.out_channels / spec.ndim, []
    for axis, taps in enumerate(spec.kernel_size):
        first, last = ceil(axis * each), ceil((axis + 1) * each)
        frequency = torch.arange(first, last, dtype=torch.float64, device="cpu").unsqueeze(1) + 1 - axis * each
        wave = (pi / taps * frequency * (torch.arange(taps, dtype=torch.float64, device="cpu") + 0.5)).cos()
        along = [taps if other == axis else 1 for other in range(spec.ndim)]
        waves.append(wave.reshape(-1, 1, *along).expand(-1, 1, *spec.kernel_size))
    return torch.cat(waves).to(torch.empty(0))  # default dtype and device


def _scaled(terms: Sequence[Callable], scales: Sequence[float] | None, usual: tuple[float, ...]) -> list[BranchFactory]:
    scales = usual if scales is None else scales
    if len(scales) != len(usual):
        raise SpecError(f"scales must have {len(usual)} numbers, one per term, but got scales={scales!r}")
    return [partial(term, scale=float(scale)) for term, scale in zip(terms, scales)]


def _conv(spec: ConvSpec, slope: float) -> _ConvNd:
    conv = spec.new_conv()
    nn.init.kaiming_uniform_(conv.weight, a=slope)
    return conv


def _stages_times_scale(spec: ConvSpec, scale: float, *stages: nn.Module) -> Branch:
    return SequentialBranch(spec, *stages, ChannelScale(spec.out_channels, spec.ndim, start=scale))


def _dense(spec: ConvSpec, scale: float, slope: float = 0.0) -> Branch:
    return _stages_times_scale(spec, scale, _conv(spec.unpadded(bias=False), slope))


def _point(spec: ConvSpec, scale: float) -> Branch:
    return _stages_times_scale(spec, scale, _conv(spec.unpadded(bias=False, kernel_size=1), 0.0))


def _filtered(spec: ConvSpec, mask: Tensor, scale: float, slope: float, drawn_as: str) -> Branch:
    channels, stride, dilation = spec.out_channels, spec.stride, spec.dilation
    fixed = FixedFilter(mask, channels, stride, dilation, scale=scale, bias=False, drawn_as=drawn_as)
    return SequentialBranch(spec, _conv(spec.pointwise(bias=False), slope), fixed)


def _mean(spec: ConvSpec, scale: float, slope: float = 0.0) -> Branch:
    ones = torch.ones(spec.kernel_size)
    return _filtered(spec, ones / ones.numel(), scale, slope, "mean")


def _cosine(spec: ConvSpec, scale: float, slope: float = 0.0) -> Branch:
    return _filtered(spec, cosines(spec), scale, slope, "cosine")


def _point_then_dense(spec: ConvSpec, hidden: int, scale: float, slope: float = 0.0, unit: bool = True) -> Branch:
    if unit:
        point: nn.Module = IdentityPlusPoint(spec.in_channels, spec.groups, spec.ndim, out_channels=hidden, keep=True)
    else:
        point = _conv(spec.pointwise(bias=False, out_channels=hidden), slope)
    return _stages_times_scale(spec, scale, point, _conv(spec.unpadded(bias=False, in_channels=hidden), slope))


def _separable(spec: ConvSpec, expansion: int, scale: float, slope: float = 0.0) -> Branch:
    wide = expansion * spec.in_channels
    depthwise = spec.unpadded(bias=False, out_channels=wide, groups=spec.in_channels)
    return _stages_times_scale(
        spec, scale, _conv(depthwise, slope), _conv(spec.pointwise(bias=False, in_channels=wide), slope)
    )


def _two_points(spec: ConvSpec, hidden: int, scale: float) -> Branch:
    first = _conv(spec.unpadded(bias=False, out_channels=hidden), 1.0)
    second = _conv(spec.pointwise(bias=False, in_channels=hidden), 1.0)
    square = first if spec.in_channels < spec.out_channels else second
    if square.weight.shape[0] == square.weight.shape[1] * spec.groups:
        with torch.no_grad():
            square.weight.copy_(kernels.identity(hidden, spec.groups, spec.ndim, square.weight).weight)
    return _stages_times_scale(spec, scale, first, second)


def _normed_sum(spec: ConvSpec, terms: Sequence[BranchFactory], bn: NormChoice) -> Branch:
    norm = make_norm(bn, spec.out_channels, spec.ndim)
    return SequentialBranch(spec, ReparamBlock(spec.unpadded(bias=False), terms), *([] if norm is None else [norm]))
