"""Convolutions and pooling as operators of TFLite."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .emit_sizes import cropped, scaled_size, surrounded
from .emitter import Emitter, emits

_SAME, _VALID = 0, 1
_LOWEST = -3.4e38
Pair = tuple[int, int]


@emits("conv")
def _conv(
    to: Emitter, x: str, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> str:
    size = (weight.shape[2], weight.shape[3])
    x, borders = _bordered(to, x, size, stride, padding, dilation)
    options: dict[str, Any] = {"padding": borders, "strideH": stride[0], "strideW": stride[1]}
    options |= {"dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    if groups == weight.shape[1] * groups > 1:
        filters = weight.permute(1, 2, 3, 0)  # (1, h, w, O)
        options["depthMultiplier"] = weight.shape[0] // groups
        return to.with_activation("DEPTHWISE_CONV_2D", x, to.constant(filters), to.constant(bias), **options)
    filters = weight.permute(0, 2, 3, 1)
    return to.with_activation("CONV_2D", x, to.constant(filters), to.constant(bias), **options)


@emits("depth_to_space")
def _shuffle(to: Emitter, x: str, factor: int) -> str:
    if not to.shuffle_as_conv:
        return to.operator("DEPTH_TO_SPACE", x, blockSize=factor)
    channels = to.shape(x)[1] // factor**2
    kernel = torch.eye(channels * factor**2).reshape(-1, factor, factor, channels).permute(0, 3, 1, 2)
    return _transposed_conv(to, x, kernel, torch.zeros(channels), (factor, factor))


@emits("transposed")
def _transposed(
    to: Emitter,
    x: str,
    weight: Tensor,
    bias: Tensor,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
) -> str:
    kernel = F.pad(_filled(weight, dilation, groups), (0, output_padding[1], 0, output_padding[0]))
    whole = _transposed_conv(to, x, kernel, bias, stride)
    return cropped(to, whole, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else whole


def _transposed_conv(to: Emitter, x: str, kernel: Tensor, bias: Tensor, stride: Pair) -> str:
    """A transposed convolution without padding, whose result has (n - 1) * stride + size pixels.

    Args:
        to: the emitter.
        x: the name of the image.
        kernel: (I, O, h, w).
        bias: (O,).
        stride: vertical and horizontal.
    """
    batch, _, *size = to.shape(x)
    more = [one - step for one, step in zip(kernel.shape[2:], stride)]
    shape = (batch, kernel.shape[1], *(one * step + rest for one, step, rest in zip(size, stride, more)))
    sizes = scaled_size(to, x, (1, *stride, 0), (0, *more, kernel.shape[1]))
    filters = to.constant(kernel.permute(1, 2, 3, 0))
    options = {"padding": _VALID, "strideH": stride[0], "strideW": stride[1]}
    return to.operator("TRANSPOSE_CONV", sizes, filters, x, to.constant(bias), shape=shape, **options)


def _filled(weight: Tensor, dilation: Pair, groups: int) -> Tensor:
    """The kernel (I, O/groups, h, w) without dilation and groups, filled up with zeros."""
    inputs, outputs, *size = weight.shape
    tall, wide = ((one - 1) * step + 1 for one, step in zip(size, dilation))
    whole = weight.new_zeros(groups, inputs // groups, groups, outputs, tall, wide)
    for group, part in enumerate(weight.chunk(groups)):
        whole[group, :, group, :, :: dilation[0], :: dilation[1]] = part
    return whole.reshape(inputs, groups * outputs, tall, wide)


@emits("average")
def _average(to: Emitter, x: str, kernel: Pair, stride: Pair, padding: Pair, count_include_pad: bool) -> str:
    if any(padding) and count_include_pad:
        x, padding = surrounded(to, x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
    borders = _kind_of_borders(kernel, stride, padding)
    if borders is None:
        raise to.refusal(f"means of {kernel} pixels in steps of {stride} that do not count the padding {padding}")
    return _pooled(to, "AVERAGE_POOL_2D", x, kernel, stride, borders)


@emits("largest")
def _largest(to: Emitter, x: str, kernel: Pair, stride: Pair, padding: Pair) -> str:
    x, borders = _bordered(to, x, kernel, stride, padding, value=_LOWEST)
    return _pooled(to, "MAX_POOL_2D", x, kernel, stride, borders)


def _pooled(to: Emitter, kind: str, x: str, kernel: Pair, stride: Pair, borders: int) -> str:
    options = {"padding": borders, "strideH": stride[0], "strideW": stride[1]}
    return to.with_activation(kind, x, **options, filterHeight=kernel[0], filterWidth=kernel[1])


def _bordered(
    to: Emitter, x: str, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1), value: float = 0.0
) -> tuple[str, int]:
    """The image, padded if neither of TFLite's two kinds of padding fits, and the kind."""
    borders = _kind_of_borders(kernel, stride, padding, dilation)
    if borders is not None:
        return x, borders
    return surrounded(to, x, (padding[1], padding[1], padding[0], padding[0]), value), _VALID


def _kind_of_borders(kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> int | None:
    """TFLite's SAME pads more on the right and below, where needed to keep the number of steps; torch does not."""
    if padding == (0, 0):
        return _VALID
    centered = all(2 * pad == (size - 1) * step for size, pad, step in zip(kernel, padding, dilation))
    return _SAME if centered and stride == (1, 1) else None
