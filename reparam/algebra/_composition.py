"""Two operations in sequence as one, and an operation written in the geometry of a spec."""

from __future__ import annotations

from math import gcd, prod

import torch.nn.functional as F
from torch import Tensor

from ..errors import SpecError
from . import _kernels as kernels
from ._kernels import Kernel
from ._linear import LinearOp
from ._spec import ConvSpec, Pads


def then(first: LinearOp, second: LinearOp, between: tuple[Tensor, Tensor] | None = None) -> LinearOp:
    """Compose two valid convolutions: `second(first(x))`.

    Args:
        first: runs first.
        second: runs after it.
        between: scale and shift of a batch norm between the two, both of shape (C,).
    """
    stride = tuple(s1 * s2 for s1, s2 in zip(first.stride, second.stride))
    bias, shifts = second.kernel.bias, first.shifts or between is not None
    if shifts:
        before = first.kernel.bias if between is None else _scaled_bias(first, *between)
        bias = kernels.shifted_before(before, second.kernel, second.groups)
    if between is not None:
        first, second = _with_scale(first, between[0], second)
    weight, grid, groups = _composed(first, second)
    return LinearOp(Kernel(weight, bias), stride, grid, groups, shifts=shifts or second.shifts)


def _with_scale(first: LinearOp, scale: Tensor, second: LinearOp) -> tuple[LinearOp, LinearOp]:
    """Both operations, with the scale between them merged into the smaller weight."""
    (inner, before), (outer, bias) = first.kernel, second.kernel
    scale = scale.to(inner)  # a batch norm may be of higher precision
    if inner.numel() <= outer.numel():
        return first._replace(kernel=Kernel(kernels.scaled(inner, scale), before)), second
    return first, second._replace(kernel=Kernel(kernels.scaled_before(scale, outer, second.groups), bias))


def _composed(first: LinearOp, second: LinearOp) -> tuple[Tensor, tuple[int, ...], int]:
    """The weight of `second(first(x))`, its dilation and its groups."""
    inner, outer = first.kernel.weight, second.kernel.weight
    grid, ratio1, ratio2 = _one_grid(first, second)
    depthwise = second.groups == second.outputs == first.outputs
    if depthwise and 1 in (prod(first.kernel.size), prod(second.kernel.size)):
        return inner * outer, grid, first.groups  # `composed` would add up almost nothing but zeros
    if prod(second.kernel.size) == 1 and first.groups % second.groups == 0:
        return kernels.gathered(inner, outer, first.groups, second.groups), grid, second.groups  # likewise
    groups = gcd(first.groups, second.groups)
    inner = kernels.dilate(kernels.regroup(first.kernel, first.groups, groups), ratio1).weight
    outer = kernels.regroup(second.kernel, second.groups, groups).weight
    return kernels.composed(inner, outer, groups, ratio2), grid, groups


def scaled(op: LinearOp, scale: Tensor, shift: Tensor) -> LinearOp:
    """The operation `scale * op(x) + shift`, as with a batch norm after it; scale and shift have shape (out,)."""
    weight = kernels.scaled(op.kernel.weight, scale.to(op.kernel.weight))
    return op._replace(kernel=Kernel(weight, _scaled_bias(op, scale, shift)), shifts=True)


def _scaled_bias(op: LinearOp, scale: Tensor, shift: Tensor) -> Tensor:
    bias = op.kernel.bias
    scale, shift = scale.to(bias), shift.to(bias)  # a batch norm may be of higher precision
    return bias * scale + shift if op.shifts else shift


def _one_grid(first: LinearOp, second: LinearOp) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The dilation of a grid that holds the taps of both, in input pixels, and the steps of each on that grid.

    The outputs of `first` are s1 pixels apart, so the taps of `second` are d2 * s1 pixels apart:

        first    3 taps, d1 = 2         1 . 1 . 1
        second   2 taps, d2 * s1 = 3    2 . . 2
        both     grid gcd(2, 3) = 1     * . * * * * . *     0, 2, 4 and 3, 5, 7
    """
    # A single tap fits every grid: 0 is neutral for gcd.
    fine = [d if k > 1 else 0 for d, k in zip(first.dilation, first.kernel.size)]
    coarse = [d * s if k > 1 else 0 for d, s, k in zip(second.dilation, first.stride, second.kernel.size)]
    grid = tuple(gcd(d1, d2) or 1 for d1, d2 in zip(fine, coarse))
    return grid, tuple(d // g or 1 for d, g in zip(fine, grid)), tuple(d // g or 1 for d, g in zip(coarse, grid))


def place(op: LinearOp, ring: Pads, spec: ConvSpec) -> Kernel:
    """The kernel of the first part of a chain, embedded in the taps of `spec`, the patch of one output position.

    Args:
        op: the operation so far, of stride 1.
        ring: what the rest of the chain crops from its output, as negative pads.
        spec: the whole chain, dense and without dilation.

    The first part maps the patch of an output position to several values. One of them lies at that position; the taps
    are shifted to read it. Here a 1x1 convolution, a, precedes a 3x3 one, which crops one value on each side:

        patch    x x x
        made     1 1 1     ring = -1 on both sides
        kernel   0 a 0     the first part, where the output is
    """
    kernel = kernels.regroup(op.kernel, op.groups, spec.groups)
    around = [-pixels for pair in reversed(ring) for pixels in pair]
    if any(around):
        kernel = Kernel(F.pad(kernel.weight, around), kernel.bias)
    return kernels.embed(kernel, spec.kernel_size)


def fit(op: LinearOp, spec: ConvSpec, embedded: bool = True) -> Kernel:
    """Write the kernel of `op` in the geometry of `spec`; unless `embedded`, with its own number of taps.

    Raises:
        SpecError: if they differ in channels or stride, or if `op` has taps or groups that do not fit the spec.
    """
    weight, size = op.kernel.weight, op.kernel.size
    came = (weight.shape[1] * op.groups, weight.shape[0], op.stride)
    wanted = (spec.in_channels, spec.out_channels, spec.stride)
    for name, have, want in zip(("in_channels", "out_channels", "stride"), came, wanted):
        if have != want:
            raise SpecError(f"the branch has {name}={have}, but its spec needs {name}={want}")
    if op.groups % spec.groups:
        raise SpecError(
            f"the branch has groups={op.groups}, which mixes channels that its spec with groups={spec.groups} "
            "keeps apart"
        )
    if any(k > 1 and d % want for k, d, want in zip(size, op.dilation, spec.dilation)):
        raise SpecError(f"the branch has dilation={op.dilation}, no multiple of its spec's dilation={spec.dilation}")
    ratio = tuple(d // want if k > 1 else 1 for k, d, want in zip(size, op.dilation, spec.dilation))
    kernel = kernels.dilate(kernels.regroup(op.kernel, op.groups, spec.groups), ratio)
    return kernels.embed(kernel, spec.kernel_size) if embedded else kernel
