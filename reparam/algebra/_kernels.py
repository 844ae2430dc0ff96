r"""The algebra of kernels: pure, differentiable functions on (weight, bias).

A kernel is the pair K = (W, b) of an affine convolution, W of shape (out, in / groups, *size) and b of shape (out,).
Taps are `dilation` pixels apart. Nothing here pads an image: composition is exact because the input of a chain is
padded once, before its first operation, and every operation after that is a valid convolution.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import SpecError
from ._spec import center, convolve


class Kernel(NamedTuple):
    """The pair (weight, bias) of an affine convolution, of shape (out, in / groups, *size) and (out,)."""

    weight: Tensor
    bias: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Taps per spatial axis."""
        return tuple(self.weight.shape[2:])


def identity(channels: int, groups: int, ndim: int, like: Tensor) -> Kernel:
    """The 1x1 kernel of y = x with `groups` groups, in the dtype and on the device of `like`."""
    if groups == channels:
        weight = like.new_ones(channels, 1, *(1,) * ndim)
    else:
        eye = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
        weight = eye.repeat(groups, 1).reshape(channels, channels // groups, *(1,) * ndim)
    return Kernel(weight, weight.new_zeros(channels))


def embed(kernel: Kernel, size: tuple[int, ...]) -> Kernel:
    """Write the same function with more taps: zeros around the kernel, center tap on center tap.

    The kernel (a, b) with five taps is (0, 0, a, b, 0): the center of an even size is the tap before the middle.

    Raises:
        SpecError: if `size` is smaller than the kernel.
    """
    if kernel.size == size:
        return kernel
    if any(small > big for small, big in zip(kernel.size, size)):
        raise SpecError(f"a kernel of {kernel.size} taps does not fit into kernel_size={size}; pass a larger size")
    pads = []
    for small, big in zip(reversed(kernel.size), reversed(size)):
        before = center(big) - center(small)
        pads += [before, big - small - before]
    return Kernel(F.pad(kernel.weight, pads), kernel.bias)


def add(*kernels: Kernel) -> Kernel:
    """The kernel of the sum of several convolutions of the same input; their sizes may differ."""
    size = tuple(max(sizes) for sizes in zip(*(kernel.size for kernel in kernels)))
    weights, biases = zip(*(embed(kernel, size) for kernel in kernels))
    return Kernel(reduce(torch.add, weights), reduce(torch.add, biases))


def affine(kernel: Kernel, scale: Tensor, shift: Tensor) -> Kernel:
    """The kernel of `scale * conv(x) + shift`: a batch norm after a convolution. Both have shape (out,)."""
    scale, shift = scale.to(kernel.weight), shift.to(kernel.weight)  # a BN may be of higher precision
    return Kernel(scaled(kernel.weight, scale), kernel.bias * scale + shift)


def affine_before(scale: Tensor, shift: Tensor, kernel: Kernel, groups: int = 1) -> Kernel:
    """The kernel of `conv(scale * x + shift)`: a batch norm before a convolution. Both have shape (in,)."""
    scale, shift = scale.to(kernel.weight), shift.to(kernel.weight)  # a BN may be of higher precision
    return Kernel(scaled_before(scale, kernel.weight, groups), shifted_before(shift, kernel, groups))


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight of `scale * conv(x)`; the scale has shape (out,)."""
    return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))


def scaled_before(scale: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """The weight of `conv(scale * x)`; the scale has shape (in,)."""
    ones = (1,) * (weight.dim() - 2)
    if groups == 1:
        return weight * scale.reshape(1, -1, *ones)
    grouped = weight.unflatten(0, (groups, -1))  # (g, out, in, *size)
    return (grouped * scale.reshape(groups, 1, -1, *ones)).flatten(0, 1)


def shifted_before(shift: Tensor, kernel: Kernel, groups: int = 1) -> Tensor:
    """The bias of `conv(x + shift)`; the shift has shape (in,)."""
    taps = kernel.weight.flatten(2)  # (g out, in, taps)
    summed = taps.squeeze(2) if taps.shape[2] == 1 else taps.sum(2)
    if groups == 1:
        return summed @ shift + kernel.bias
    if summed.shape == (groups, 1):  # a filter per channel
        return summed[:, 0] * shift + kernel.bias
    shift = summed.unflatten(0, (groups, -1)) @ shift.reshape(groups, -1, 1)
    return shift.flatten() + kernel.bias


def dilate(kernel: Kernel, factors: tuple[int, ...]) -> Kernel:
    """The same function with taps written `factors` times as densely: a b c by 2 is a 0 b 0 c."""
    return Kernel(_dilated(kernel.weight, factors), kernel.bias)


def _dilated(weight: Tensor, factors: tuple[int, ...]) -> Tensor:
    if all(factor == 1 for factor in factors):
        return weight
    size = [factor * (k - 1) + 1 for factor, k in zip(factors, weight.shape[2:])]
    zeros = weight.new_zeros(*weight.shape[:2], *size)
    every = (slice(None), slice(None), *(slice(None, None, factor) for factor in factors))
    zeros[every] = weight
    return zeros


def regroup(kernel: Kernel, groups: int, to: int) -> Kernel:
    """Write a kernel of `groups` groups with fewer groups, `to`, by zeros between the old groups.

    Rows are outputs, columns are the inputs of their group. Three groups of one output and two inputs, made dense:

        a b        a b 0 0 0 0
        c d   ->   0 0 c d 0 0
        e f        0 0 0 0 e f
    """
    if groups == to:
        return kernel
    each = groups // to  # old groups per new group
    weight = rearrange(kernel.weight, "(g a o) i ... -> g a o i ...", g=to, a=each)
    eye = torch.eye(each, dtype=weight.dtype, device=weight.device)
    blocks = torch.einsum("ab,gaoi...->gaobi...", eye, weight)  # old group a reads the channels of old group b = a only
    return Kernel(rearrange(blocks, "g a o b i ... -> (g a o) (b i) ..."), kernel.bias)


def compose(first: Kernel, second: Kernel, groups: int, dilation: tuple[int, ...]) -> Kernel:
    r"""The kernel of `second(first(x))`, both with `groups` groups.

    $$W[o, i, t] = \sum_{m,\; t_1 + d t_2 = t} W_2[o, m, t_2] W_1[m, i, t_1], \qquad
      b[o] = b_2[o] + \sum_{m, t_2} W_2[o, m, t_2] b_1[m]$$

    Args:
        first: W of shape (groups * M, I, *k1).
        second: W of shape (groups * O, M, *k2).
        groups: of both and of the result.
        dilation: d, the distance between two taps of `second`, in taps of `first`.

    Returns:
        W of shape (groups * O, I, *k) with k = k1 + d (k2 - 1).
    """
    weight = composed(first.weight, second.weight, groups, dilation)
    return Kernel(weight, shifted_before(first.bias, second, groups))


def composed(first: Tensor, second: Tensor, groups: int, dilation: tuple[int, ...]) -> Tensor:
    """The weight of `compose`."""
    inner = first.unflatten(0, (groups, -1))  # (g, m, i, *k1)
    outer = second.unflatten(0, (groups, -1))  # (g, o, m, *k2)
    taps = outer.flatten(3)  # (g, o, m, t2)
    if all(k == 1 for k in outer.shape[3:]):
        return (taps.squeeze(3) @ inner.flatten(2)).reshape(-1, *inner.shape[2:])
    if all(k == 1 for k in inner.shape[3:]):
        weight = inner.flatten(2).transpose(1, 2).unsqueeze(1) @ taps
        weight = weight.reshape(-1, inner.shape[2], *outer.shape[3:])
        return _dilated(weight, dilation)
    # Composing is a full convolution of the two kernels, and torch's convolution is a correlation: flip one.
    #
    #     first, padded      0 0 a b c 0 0
    #     second, flipped    w v u . . . .     t = 0: a u
    #                        . w v u . . .     t = 1: a v + b u, the terms with t1 + t2 = 1
    spatial = tuple(range(2, second.dim()))
    full = tuple((d * (k - 1),) * 2 for d, k in zip(dilation, second.shape[2:]))
    image = rearrange(inner, "g m i ... -> i (g m) ...")
    ones = (1,) * len(spatial)
    result = convolve(image, second.flip(spatial), None, stride=ones, dilation=dilation, groups=groups, pads=full)
    return result.transpose(0, 1)  # (i, g * o, *k) to (g * o, i, *k)


def gathered(first: Tensor, second: Tensor, groups: int, to: int) -> Tensor:
    r"""The weight of `second(first(x))`, if `second` has one tap and mixes some groups of `first`.

    $$W[o, (r, i), t] = \sum_m W_2[o, (r, m)] W_1[(r, m), i, t]$$

    for each old group r inside a new group.

    Args:
        first: W of shape (groups * M, I, *k).
        second: W of shape (to * O, groups / to * M, 1, ...).
        groups: of the first.
        to: groups of the second, and of the result.
    """
    inner = first.unflatten(0, (groups, -1)).flatten(3)  # (g r, m, i, t)
    outer = rearrange(second.flatten(1), "(g o) (r m) -> (g r) o m", g=to, r=groups // to)
    weight = rearrange(outer @ inner.flatten(2), "(g r) o (i t) -> (g o) (r i) t", g=to, i=first.shape[1])
    return weight.reshape(len(second), -1, *first.shape[2:])


def compose_depthwise(first: Kernel, depthwise: Kernel) -> Kernel:
    """`compose` for a depthwise `second`, if either has a single tap: W[o, i, t] = W2[o, 0, t] W1[o, i, t]."""
    return Kernel(first.weight * depthwise.weight, shifted_before(first.bias, depthwise, len(depthwise.bias)))
