r"""The algebra of kernels: pure, differentiable functions on (weight, bias).

A kernel is the pair K = (W, b) of an affine convolution, W of shape (out, in / groups, *size) and b of shape (out,).
Taps lie `dilation` pixels apart and nothing here pads an image: composing is exact because the input of the whole chain
is padded once, before its first operation, and everything after it is a valid convolution.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import SpecError
from ._spec import centre, convolve


class Kernel(NamedTuple):
    """Weight of shape (out, in / groups, *size) and bias of shape (out,)."""

    weight: Tensor
    bias: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Taps per spatial axis."""
        return tuple(self.weight.shape[2:])


def identity(channels: int, groups: int, ndim: int, like: Tensor) -> Kernel:
    """The 1x1 kernel of y = x, as a convolution with `groups` groups and the dtype and device of `like`."""
    eye = torch.eye(channels // groups, dtype=like.dtype, device=like.device)
    weight = eye.repeat(groups, 1).reshape(channels, channels // groups, *(1,) * ndim)
    return Kernel(weight, weight.new_zeros(channels))


def embed(kernel: Kernel, size: tuple[int, ...]) -> Kernel:
    """The same function written with more taps: zeros around the kernel, centre tap on centre tap.

    a b to five taps is 0 0 a b 0, as the centre of an even size is the tap before the middle.
    """
    if kernel.size == size:
        return kernel
    if any(small > big for small, big in zip(kernel.size, size)):
        raise SpecError(f"a kernel of {kernel.size} taps does not fit into kernel_size={size}")
    pads = []
    for small, big in zip(reversed(kernel.size), reversed(size)):
        before = centre(big) - centre(small)
        pads += [before, big - small - before]
    return Kernel(F.pad(kernel.weight, pads), kernel.bias)


def add(*kernels: Kernel) -> Kernel:
    """The kernel of the sum of several convolutions of one input; sizes may differ."""
    size = tuple(max(sizes) for sizes in zip(*(kernel.size for kernel in kernels)))
    weights, biases = zip(*(embed(kernel, size) for kernel in kernels))
    return Kernel(reduce(torch.add, weights), reduce(torch.add, biases))


def affine(kernel: Kernel, scale: Tensor, shift: Tensor) -> Kernel:
    """The kernel of `scale * conv(x) + shift`, both of shape (out,): what a BN after a convolution does."""
    scale, shift = scale.to(kernel.weight), shift.to(kernel.weight)  # a BN may be of higher precision
    weight = kernel.weight * scale.reshape(-1, *(1,) * (kernel.weight.dim() - 1))
    return Kernel(weight, kernel.bias * scale + shift)


def affine_before(scale: Tensor, shift: Tensor, kernel: Kernel, groups: int = 1) -> Kernel:
    """The kernel of `conv(scale * x + shift)`, both of shape (in,): a BN before a convolution, taken into it."""
    scale, shift = scale.to(kernel.weight), shift.to(kernel.weight)  # a BN may be of higher precision
    weight = kernel.weight.unflatten(0, (groups, -1))  # (g, out, in, *size)
    scaled = weight * scale.reshape(groups, 1, -1, *(1,) * len(kernel.size))
    shifted = weight.flatten(3).sum(3) @ shift.reshape(groups, -1, 1)
    return Kernel(scaled.flatten(0, 1), kernel.bias + shifted.flatten())


def dilate(kernel: Kernel, factors: tuple[int, ...]) -> Kernel:
    """The same function with taps written `factors` times as densely: a b c by 2 is a 0 b 0 c."""
    if all(factor == 1 for factor in factors):
        return kernel
    size = [factor * (k - 1) + 1 for factor, k in zip(factors, kernel.size)]
    weight = kernel.weight.new_zeros(*kernel.weight.shape[:2], *size)
    every = (slice(None), slice(None), *(slice(None, None, factor) for factor in factors))
    weight[every] = kernel.weight
    return Kernel(weight, kernel.bias)


def regroup(kernel: Kernel, groups: int, to: int) -> Kernel:
    """A kernel of `groups` groups written with fewer, `to`, groups: zeros between the old groups.

    Rows are outputs, columns inputs of their group; three groups of one output and two inputs, made dense:

        a b        a b 0 0 0 0
        c d   ->   0 0 c d 0 0
        e f        0 0 0 0 e f
    """
    if groups == to:
        return kernel
    each = groups // to  # old groups in a new one
    weight = rearrange(kernel.weight, "(g a o) i ... -> g a o i ...", g=to, a=each)
    eye = torch.eye(each, dtype=weight.dtype, device=weight.device)
    blocks = torch.einsum("ab,gaoi...->gaobi...", eye, weight)  # old group a sees the channels of old group b = a only
    return Kernel(rearrange(blocks, "g a o b i ... -> (g a o) (b i) ..."), kernel.bias)


def compose(first: Kernel, second: Kernel, groups: int, dilation: tuple[int, ...]) -> Kernel:
    r"""The kernel of `second(first(x))`, both with `groups` groups.

    $$W[o, i, t] = \sum_{m,\; t_1 + d t_2 = t} W_2[o, m, t_2] W_1[m, i, t_1], \qquad
      b[o] = b_2[o] + \sum_{m, t_2} W_2[o, m, t_2] b_1[m]$$

    Args:
        first: W of shape (groups * M, I, *k1).
        second: W of shape (groups * O, M, *k2).
        groups: of both and of the result.
        dilation: d, the distance of two taps of `second` counted in taps of `first`.

    Returns:
        W of shape (groups * O, I, *k) with k = k1 + d (k2 - 1).
    """
    inner = first.weight.unflatten(0, (groups, -1))  # (g, m, i, *k1)
    outer = second.weight.unflatten(0, (groups, -1))  # (g, o, m, *k2)
    taps = outer.flatten(3)  # (g, o, m, t2)
    if all(k == 1 for k in second.size):
        weight = (taps.squeeze(3) @ inner.flatten(2)).reshape(-1, *inner.shape[2:])
    elif all(k == 1 for k in first.size):
        weight = (inner.flatten(2).transpose(1, 2).unsqueeze(1) @ taps).reshape(-1, inner.shape[2], *second.size)
        weight = dilate(Kernel(weight, second.bias), dilation).weight
    else:
        # Composing is a full convolution of the two kernels, and torch's convolution is a correlation: flip one.
        #
        #     first, padded      0 0 a b c 0 0
        #     second, flipped    w v u . . . .     t = 0: a u
        #                        . w v u . . .     t = 1: a v + b u, which are t1 + t2 = 1
        spatial = tuple(range(2, second.weight.dim()))
        full = tuple((d * (k - 1),) * 2 for d, k in zip(dilation, second.size))
        image = rearrange(inner, "g m i ... -> i (g m) ...")
        ones = (1,) * len(spatial)
        flipped = second.weight.flip(spatial)
        result = convolve(image, flipped, None, stride=ones, dilation=dilation, groups=groups, pads=full)
        weight = result.transpose(0, 1)  # (i, g * o, *k) to (g * o, i, *k)
    shift = taps.sum(3) @ first.bias.unflatten(0, (groups, -1, 1))
    return Kernel(weight, second.bias + shift.flatten())


def compose_depthwise(first: Kernel, depthwise: Kernel) -> Kernel:
    """`compose` with one filter per channel, where one of the two has one tap: W[o, i, t] = W2[o, 0, t] W1[o, i, t]."""
    weight = first.weight * depthwise.weight
    return Kernel(weight, depthwise.bias + depthwise.weight.flatten(1).sum(1) * first.bias)
