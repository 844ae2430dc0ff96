"""RepNeXt: depthwise kernels made of squares, strips, pairs of strips and corners."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from ..algebra._spec import ConvSpec
from ..branches import Branch, ConvBranch, IdentityBranch, SequentialBranch, SliceBranch
from ..branches._geometry import Sizes
from ._arguments import argument
from ._block import BranchFactory, ReparamBlock
from ._conv_block import ConvBlock
from ._sizes import Size, less, lines_of


class RepDWConvS(ConvBlock):
    r"""The small convolution of RepNeXt, equal to one k x k convolution.

    $$y = W_{3\times3} * x + W_{1\times3} * x + W_{3\times1} * x + W_{2\times2} *_2 x + b$$

    $*_2$ is a convolution with dilation 2, which reads the corners; for k taps the dilation is k - 1. With a stride the
    strips run one after the other, $W_{3\times1} * (W_{1\times3} * x)$, without biases. Every other term has a bias.
    Used with groups = channels.

    Source: M. Zhao, Y. Luo, Y. Ouyang, "RepNeXt: A Fast Multi-Scale CNN using Structural Reparameterization", arXiv
    2406.16004; class RepDWConvS of the authors' code, which has 3x3 kernels only.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        conv_bias: whether the convolutions have biases.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> block = RepDWConvS(8, groups=8)
        >>> [branch.conv.kernel_size for branch in block.branches]
        [(3, 3), (3, 1), (1, 3), (2, 2)]
    """

    conv_bias: bool = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The square, the strips, the corners."""
        conv = partial(ConvBranch, bias=self.conv_bias)
        apart = tuple(max(k - 1, 1) * d for k, d in zip(spec.kernel_size, spec.dilation))
        corners = partial(conv, kernel_size=tuple(min(k, 2) for k in spec.kernel_size), dilation=apart)
        strips: list[BranchFactory] = [partial(conv, kernel_size=line) for line in lines_of(spec.kernel_size)]
        if any(s > 1 for s in spec.stride):
            strips = [partial(_in_turn, size=spec.kernel_size)]
        return [conv, *strips, corners]


class RepDWConvM(ConvBlock):
    r"""The medium convolution of RepNeXt, equal to one k x k convolution.

    $$y = W_{7\times7} * x + W_{5\times3} * x + W_{3\times5} * x + W_{7\times1} * (W_{1\times7} * x)
      + W_{5\times1} * (W_{1\times5} * x) + b$$

    The pairs of strips have no biases; every other term has one. For k taps, 7, 5 and 3 become k, k - 2 and k - 4. Used
    with groups = channels.

    Source: as `RepDWConvS`; class RepDWConvM of the authors' code, which has 7x7 kernels only.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        conv_bias: whether the convolutions have biases.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> block = RepDWConvM(8, groups=8)
        >>> [branch.conv.kernel_size for branch in block.branches[:3]]
        [(7, 7), (5, 3), (3, 5)]
    """

    kernel_size: Sizes = argument(default=7, kw_only=False)
    conv_bias: bool = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The square, the two rectangles, the pairs of strips."""
        conv = partial(ConvBranch, bias=self.conv_bias)
        middle, small = less(spec.kernel_size, 2), less(spec.kernel_size, 4)
        oblong = [(*small[:axis], middle[axis], *small[axis + 1 :]) for axis in range(spec.ndim)]
        strips = [partial(_in_turn, size=size) for size in (spec.kernel_size, middle)]
        return [conv, *(partial(conv, kernel_size=size) for size in oblong), *strips]


def _in_turn(spec: ConvSpec, size: Size, bias: bool = False) -> Branch:
    """One strip per axis, the last axis first, each with the stride of its axis; together they have this size."""
    convs = []
    channels = spec.in_channels
    for axis in reversed(range(spec.ndim)):
        stride = tuple(s if axis == along else 1 for along, s in enumerate(spec.stride))
        line = {"kernel_size": lines_of(size)[axis], "stride": stride, "bias": bias}
        convs.append(spec.unpadded(in_channels=channels, **line).new_conv())
        channels = spec.out_channels
    return SequentialBranch(spec, *convs)


def _inside(spec: ConvSpec, block: type[ConvBlock], size: int, conv_bias: bool) -> Branch:
    """A block with fewer taps than the spec."""
    taps = tuple(min(k, size) for k in spec.kernel_size)
    inner = spec.unpadded(kernel_size=taps, bias=True)
    return SequentialBranch(spec, ReparamBlock(inner, block.planned(inner, conv_bias=conv_bias)))


class ChunkConv(ConvBlock):
    r"""The chunk convolution of RepNeXt, equal to one k x k convolution.

    $$y = [x_1,\; S(x_2),\; M(x_3),\; W_{11\times1} * (W_{1\times11} * x_4 + c) + d],\qquad x = [x_1, x_2, x_3, x_4]$$

    S is `RepDWConvS` with 3x3 and M is `RepDWConvM` with 7x7 taps. Used with groups = channels; each part has a quarter
    of the channels, rounded down. As one convolution it has six times the multiply-adds of the parts fused separately,
    as the authors do. It pays off if many small layers are slow; otherwise use `RepDWConvS` and `RepDWConvM` on a
    quarter of the channels each.

    Source: as `RepDWConvS`; class ChunkConv of the authors' code. It pads with zeros, not with c, between the last two
    convolutions, and so equals no convolution at the border. This one pads x first and does.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        conv_bias: whether the convolutions have biases.

    Shape:
        (N, C, *size) to the same, for a spec that keeps the size.

    Raises:
        SpecError: for a geometry that no convolution has, or that has no identity.

    Example:
        >>> import torch
        >>> block = ChunkConv(8, groups=8)
        >>> x = torch.rand(1, 8, 12, 12)
        >>> torch.equal(block(x)[:, :2], x[:, :2])
        True
    """

    kernel_size: Sizes = argument(default=11, kw_only=False)
    conv_bias: bool = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The four parts, without those that have no channels."""
        small, medium = (
            partial(_inside, block=block, size=size, conv_bias=self.conv_bias)
            for block, size in ((RepDWConvS, 3), (RepDWConvM, 7))
        )
        strips = partial(_in_turn, size=spec.kernel_size, bias=self.conv_bias)
        units = spec.in_channels if spec.groups == 1 else spec.groups
        ends = [units * quarter // 4 * (spec.in_channels // units) for quarter in range(5)]
        kinds: tuple[BranchFactory, ...] = (IdentityBranch, small, medium, strips)
        places = zip(kinds, pairwise(ends))
        return [partial(SliceBranch, branch=kind, channels=place) for kind, place in places if place[0] < place[1]]
