"""Padding, crops, upsampling and channels as operators of TFLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .emitter import Emitter, emits

_HEIGHT, _WIDTH, _CHANNELS = 1, 2, 3
Amounts = tuple[int, int, int, int]
"""Left, right, top, bottom."""


@emits("pad")
def _pad(to: Emitter, x: str, amounts: Amounts, mode: str, value: float) -> str:
    if mode == "constant":
        return surrounded(to, x, amounts, value)
    if mode == "reflect":
        return to.operator("MIRROR_PAD", x, _ends(to, amounts), mode=0)
    left, right, top, bottom = amounts
    for axis, before, after in ((_WIDTH, left, right), (_HEIGHT, top, bottom)):
        if mode == "circular":
            pieces = [_part(to, x, axis, -before, None)] if before else []
            pieces += [x, *([_part(to, x, axis, 0, after)] if after else [])]
        else:
            pieces = [_part(to, x, axis, 0, 1)] * before if before else []
            pieces += [x, *([_part(to, x, axis, -1, None)] * after if after else [])]
        x = _joined(to, pieces, axis)
    return x


def surrounded(to: Emitter, x: str, amounts: Amounts, value: float = 0.0) -> str:
    """The image padded with a constant."""
    (batch, channels, height, width), (left, right, top, bottom) = to.shape(x), amounts
    shape = (batch, channels, height + top + bottom, width + left + right)
    inputs = [x, _ends(to, amounts), *([to.constant(value)] if value else [])]
    return to.operator("PADV2" if value else "PAD", *inputs, shape=shape)


def _ends(to: Emitter, amounts: Amounts) -> str:
    left, right, top, bottom = amounts
    return to.constant([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)


@emits("crop")
def cropped(to: Emitter, x: str, amounts: Amounts) -> str:
    """The image without its edges."""
    left, right, top, bottom = amounts
    return _sliced(to, x, to.step.shape, {_HEIGHT: (top, -bottom or None), _WIDTH: (left, -right or None)})


def _part(to: Emitter, x: str, axis: int, start: int, stop: int | None) -> str:
    """A slice of one axis of (N, H, W, C)."""
    batch, channels, height, width = to.shape(x)
    size: Any = [batch, height, width, channels]
    size[axis] = len(range(size[axis])[start:stop])
    return _sliced(to, x, (size[0], size[3], size[1], size[2]), {axis: (start, stop)})


def _sliced(to: Emitter, x: str, shape: tuple[int, ...], slices: dict[int, tuple[int, int | None]]) -> str:
    ends = [slices.get(axis, (0, None)) for axis in range(4)]
    begin = to.constant([start for start, _ in ends], np.int32)
    end = to.constant([stop or 0 for _, stop in ends], np.int32)
    open_ends = sum(2**axis for axis, (_, stop) in enumerate(ends) if stop is None)
    steps = to.constant([1, 1, 1, 1], np.int32)
    return to.operator("STRIDED_SLICE", x, begin, end, steps, shape=shape, endMask=open_ends)


@emits("concat")
def _concat(to: Emitter, *images: str) -> str:
    return _joined(to, images, _CHANNELS)


def _joined(to: Emitter, images: Sequence[str], axis: int) -> str:
    if len(images) == 1:
        return images[0]
    shapes = [to.shape(one) for one in images]
    place = {_HEIGHT: 2, _WIDTH: 3, _CHANNELS: 1}[axis]
    shape = list(shapes[0])
    shape[place] = sum(one[place] for one in shapes)
    return to.operator("CONCATENATION", *images, shape=tuple(shape), axis=axis)


@emits("gather")
def _gather(to: Emitter, x: str, index: Tensor) -> str:
    channels = to.shape(x)[1]
    times, rest = divmod(len(index), channels)
    if not rest and torch.equal(index, torch.arange(channels).repeat(times)):
        return _joined(to, [x] * times, _CHANNELS)
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index) and torch.equal(index, torch.arange(first, last + 1)):
        return _part(to, x, _CHANNELS, first, last + 1)
    return to.operator("GATHER", x, to.constant(index, np.int32), axis=_CHANNELS)


@emits("space_to_depth")
def _unshuffle(to: Emitter, x: str, factor: int) -> str:
    return to.operator("SPACE_TO_DEPTH", x, blockSize=factor)


@emits("resize")
def _resize(to: Emitter, x: str, factor: tuple[float, float], mode: str, align_corners: bool) -> str:
    if mode == "bicubic":
        raise to.refusal("bicubic interpolation")
    if to.dynamic is True and not all(float(one).is_integer() for one in factor):
        raise to.refusal(f"an upsampling by {factor} with free sizes")
    size = scaled_size(to, x, factor, (0, 0))
    if mode == "nearest":
        return to.operator("RESIZE_NEAREST_NEIGHBOR", x, size)
    return to.operator("RESIZE_BILINEAR", x, size, alignCorners=align_corners, halfPixelCenters=not align_corners)


def scaled_size(to: Emitter, x: str, factor: Sequence[float], more: Sequence[int]) -> str:
    """The name of an image's sizes, times factors, plus `more`: all four, or only height and width."""
    batch, channels, height, width = to.shape(x)
    size = [height, width] if len(factor) == 2 else [batch, height, width, channels]
    if not to.dynamic or (to.dynamic == "batch" and len(factor) == 2):
        return to.constant([round(one * by) + rest for one, by, rest in zip(size, factor, more)], np.int32)
    name = to.integers("SHAPE", x, count=4, outType=2)
    if len(size) == 2:
        begin, end, step = (to.constant([one], np.int32) for one in (1, 3, 1))
        name = to.integers("STRIDED_SLICE", name, begin, end, step, count=2)
    name = to.integers("MUL", name, to.constant([int(one) for one in factor], np.int32), count=len(size))
    return to.integers("ADD", name, to.constant(more, np.int32), count=len(size)) if any(more) else name


@emits("mean")
def _mean(to: Emitter, x: str) -> str:
    return to.operator("MEAN", x, to.constant([1, 2], np.int32), keepDims=True)
