"""UniRepLKNet: a large depthwise kernel and small dilated ones inside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches import ConvBNBranch
from ..errors import SpecError
from ._block import BranchFactory
from ._conv_block import ConvBlock

_SMALL: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    17: ((5, 9, 3, 3, 3), (1, 2, 4, 5, 7)),
    15: ((5, 7, 3, 3, 3), (1, 2, 3, 5, 7)),
    13: ((5, 7, 3, 3, 3), (1, 2, 3, 4, 5)),
    11: ((5, 5, 3, 3, 3), (1, 2, 3, 4, 5)),
    9: ((5, 5, 3, 3), (1, 2, 3, 4)),
    7: ((5, 3, 3), (1, 2, 3)),
    5: ((3, 3), (1, 2)),
}


class DilatedReparamBlock(ConvBlock):
    r"""The dilated re-param block of UniRepLKNet, equal to one large k x k convolution.

    $$y = \mathrm{BN}(W_{k\times k} * x) + \sum_j \mathrm{BN}_j(W^{(j)}_{k_j\times k_j} *_{r_j} x)$$

    $*_r$ is a convolution with dilation r; each small kernel, dilated, fits into the large one. Used with groups =
    channels. In the network a batch norm follows; `sum_bn=True` makes it part of the block. In stages without a large
    kernel, the network has a depthwise convolution with that batch norm instead, `ConvBNBranch`.

    Source: X. Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud,
    Time-Series and Image Recognition", CVPR 2024, arXiv 2311.15599. The small sizes and dilations are those of the
    authors' code.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        small: sizes of the small kernels and their dilations, in taps of the large one; None means the authors' choice
            for a kernel size of 5, 7, ..., 17.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, a small kernel that does not fit, or, without `small`, a
            kernel size for which the authors define no small kernels.

    Example:
        >>> len(DilatedReparamBlock(8, kernel_size=7, groups=8).branches)
        4
    """

    small: tuple[Sequence[int], Sequence[int]] | None = None
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The large convolution and the small dilated ones."""
        size = spec.kernel_size[0]
        if self.small is None and (size not in _SMALL or len(set(spec.kernel_size)) > 1):
            raise SpecError(
                f"the authors define small kernels for kernel_size {sorted(_SMALL)}, but got kernel_size="
                f"{spec.kernel_size}; pass small=(sizes, dilations)"
            )
        sizes, dilations = _SMALL[size] if self.small is None else self.small
        apart = [tuple(rate * d for d in spec.dilation) for rate in dilations]
        kinds = [partial(ConvBNBranch, kernel_size=k, dilation=d, bn=self.bn) for k, d in zip(sizes, apart)]
        return [partial(ConvBNBranch, bn=self.bn), *kinds]
