"""Fixed derivative filters with a learned scale: Sobel and Laplacian."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from ..algebra._spec import ConvSpec
from ..errors import SpecError
from ._chain import ChainBranch
from ._stages import FixedFilter


def sobel_mask(ndim: int, axis: int) -> Tensor:
    """(1, 0, -1) along `axis` and (1, 2, 1) along the others; `axis` counts from the end, so that -1 is x."""
    factors = [torch.tensor([1.0, 2.0, 1.0])] * ndim
    factors[axis] = torch.tensor([1.0, 0.0, -1.0])
    return reduce(lambda a, b: a.unsqueeze(-1) * b, factors)


def laplacian_mask(ndim: int) -> Tensor:
    """1 at the 2 * ndim neighbors and -2 * ndim at the center."""
    mask = torch.zeros((3,) * ndim)
    middle = (1,) * ndim
    for axis in range(ndim):
        for neighbor in (0, 2):
            place = (*middle[:axis], neighbor, *middle[axis + 1 :])
            mask[place] = 1.0
    mask[middle] = -2.0 * ndim
    return mask


class _EdgeBranch(ChainBranch):
    """A 1x1 convolution and a fixed filter: y = s (m * (W x + b_1)) + b_2."""

    def __init__(self, spec: ConvSpec, mask: Tensor, bias: bool, drawn_as: str) -> None:
        super().__init__(spec)
        if any(k < 3 for k in spec.kernel_size):
            raise SpecError(
                f"{type(self).__name__} needs at least 3 taps per axis, but got kernel_size={spec.kernel_size}"
            )
        self.conv = spec.pointwise(bias=bias).new_conv()
        self.filter = FixedFilter(mask, spec.out_channels, spec.stride, spec.dilation, drawn_as=drawn_as)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.conv, self.filter]


class SobelBranch(_EdgeBranch):
    r"""A 1x1 convolution, then the Sobel derivative along one axis, with a learned scale and bias.

    $$y = s\,(D * (W x + b_1)) + b_2,\qquad D_x = \begin{pmatrix}1&0&-1\\2&0&-2\\1&0&-1\end{pmatrix}$$

    W is (out, in / groups, 1, 1), s and b_2 are (out,), and D is a fixed buffer. In one dimension D is (1, 0, -1); in
    three it smooths along both other axes.

    Source: Zhang, Zeng, Zhang, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices",
    ACM MM 2021. They pad the output of the 1x1 with its bias; padding the input first, as here, is equivalent.

    Args:
        spec: the geometry; at least 3 taps per axis.
        axis: axis of the derivative, counted from the end: -1 is x (across the columns), -2 is y.
        bias: whether the 1x1 convolution has a bias.

    Raises:
        SpecError: for fewer than 3 taps, or an axis that the spec does not have.

    Example:
        >>> SobelBranch(ConvSpec(1), axis=-1).filter.mask[0, 0, 1].tolist()
        [2.0, 0.0, -2.0]
    """

    def __init__(self, spec: ConvSpec, *, axis: int = -1, bias: bool = True) -> None:
        if not -spec.ndim <= axis <= -1:
            raise SpecError(f"axis must lie in {-spec.ndim}..-1 for ndim={spec.ndim}, but got axis={axis}")
        super().__init__(spec, sobel_mask(spec.ndim, axis), bias, f"Sobel {'xyz'[-1 - axis]}")


class LaplacianBranch(_EdgeBranch):
    r"""A 1x1 convolution, then the Laplacian, with a learned scale and bias.

    $$y = s\,(L * (W x + b_1)) + b_2,\qquad L = \begin{pmatrix}0&1&0\\1&-4&1\\0&1&0\end{pmatrix}$$

    W is (out, in / groups, 1, 1), s and b_2 are (out,), and L is a fixed buffer. In one dimension L is (1, -2, 1); in
    three it has six neighbors.

    Source: as `SobelBranch`.

    Args:
        spec: the geometry; at least 3 taps per axis.
        bias: whether the 1x1 convolution has a bias.

    Raises:
        SpecError: for fewer than 3 taps.

    Example:
        >>> LaplacianBranch(ConvSpec(1)).filter.mask.sum().item()
        0.0
    """

    def __init__(self, spec: ConvSpec, *, bias: bool = True) -> None:
        super().__init__(spec, laplacian_mask(spec.ndim), bias, "Laplacian")
