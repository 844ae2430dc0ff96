"""Operations that move elements without computing: views, slices, permutations, shuffles, however they are written."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Move = tuple[str, dict[str, Any]]
"""A kind of step, and its settings."""

VIEWS = ("view", "_unsafe_view", "_reshape_alias")
SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh", "_to_copy")
MOVES = (
    *VIEWS,
    *SAME,
    "as_strided",
    "expand",
    "permute",
    "transpose",
    "t",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "index",
    "index_select",
    "flip",
    "roll",
    "repeat",
    "split",
    "split_with_sizes",
    "unbind",
    "unfold",
    "channel_shuffle",
    "pixel_shuffle",
    "pixel_unshuffle",
)
"""The names of torch's operations; others, such as `chunk` and `tile`, are decomposed into these."""


def places(shape: tuple[int, ...]) -> Tensor:
    """The index of each element of an image, in the image's shape."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def moved(operation: str, func: Any, index: Tensor, arguments: dict[str, Any]) -> Any:
    """The indices after an operation has moved elements.

    Args:
        operation: its name, without the trailing underscore of in-place operations.
        func: the operation itself.
        index: the indices before.
        arguments: by their names in the schema; the first is the tensor that is moved.

    Returns:
        The indices, or a list of them if the operation returns several tensors; None if the operation is not known.
    """
    rest = dict(list(arguments.items())[1:])
    if operation in SAME:
        return index
    if operation in VIEWS:
        return index.reshape(rest["size"])
    if operation == "as_strided":  # it addresses memory, not elements
        one_pixel = tuple(rest["size"]) == tuple(index.shape) and index.shape[2:] == (1, 1)
        return index if one_pixel else None  # as global pooling of channels-last images ends
    return func(index.clone(), **rest)


def as_moves(index: Tensor, shape: tuple[int, ...]) -> list[tuple[Move, tuple[int, ...]]] | None:
    """The steps, with their output shapes, that move elements of an image as `index` says; None if no steps do.

    Args:
        index: (N, C, H, W) or (N, C), indices into the image.
        shape: the shape of the image.

    Example:
        >>> index = torch.nn.functional.pixel_shuffle(places((1, 8, 3, 5)), 2)
        >>> as_moves(index[:, 1:], (1, 8, 3, 5))[-1]
        (('shuffle', {'factor': 2}), (1, 1, 6, 10))
    """
    index = index[:, :, None, None] if index.dim() == 2 else index
    if index.dim() != 4 or 0 in index.shape:
        return None
    for moves in (_cropped, _around, _shuffled, _unshuffled):
        found, result = [], places(shape)
        for move in moves(index, shape):
            after = _applied(move, result)
            if not torch.equal(after, result):
                found.append((move, tuple(after.shape)))
            result = after
        if torch.equal(result, index):
            return found
    return None


def one_pixel_of(index: Tensor) -> Tensor:
    """The indices of one pixel, if all pixels of the image are the same; else the indices themselves."""
    one = index[:, :, :1, :1] if index.dim() == 4 else index
    return one if index.dim() == 4 and torch.equal(one.expand_as(index), index) else index


def _cropped(index: Tensor, shape: tuple[int, ...]) -> list[Move]:
    channels, top, left = _coordinates(index[:1, :, :1, :1], shape)
    bottom, right = (whole - part - first for whole, part, first in zip(shape[2:], index.shape[2:], (top, left)))
    if min(bottom, right) < 0:
        return []
    return [("crop", {"amounts": (left, right, top, bottom)}), ("gather", {"index": channels})]


def _around(index: Tensor, shape: tuple[int, ...]) -> list[Move]:
    """Circular padding."""
    _, row, column = _coordinates(index[:1, :1, :1, :1], shape)
    top, left = -row % shape[2], -column % shape[3]
    bottom, right = (part - whole - first for whole, part, first in zip(shape[2:], index.shape[2:], (top, left)))
    if min(bottom, right) < 0 or bottom > shape[2] or right > shape[3]:
        return []
    return [("pad", {"amounts": (left, right, top, bottom), "mode": "circular", "value": 0.0})]


def _shuffled(index: Tensor, shape: tuple[int, ...]) -> list[Move]:
    factor = index.shape[2] // shape[2]
    if factor < 2:
        return []
    channels, *_ = _coordinates(index[:1, :, :factor, :factor], shape)
    return [("gather", {"index": channels}), ("shuffle", {"factor": factor})]


def _unshuffled(index: Tensor, shape: tuple[int, ...]) -> list[Move]:
    factor = shape[2] // index.shape[2]
    if factor < 2 or shape[2] % factor or shape[3] % factor:
        return []
    channels, *_ = _coordinates(index[:1, :, :1, :1], shape)
    pixels = index[0, :, 0, 0] % (shape[2] * shape[3])
    rows, columns = pixels // shape[3], pixels % shape[3]
    if max(int(rows.max()), int(columns.max())) >= factor:
        return []
    return [("unshuffle", {"factor": factor}), ("gather", {"index": (channels * factor + rows) * factor + columns})]


def _coordinates(index: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, int, int]:
    """The channel of each index, in a row, and the pixel of the first one."""
    pixels = shape[2] * shape[3]
    pixel = int(index.flatten()[0]) % pixels
    return (index.flatten() // pixels) % shape[1], pixel // shape[3], pixel % shape[3]


def _applied(move: Move, image: Tensor) -> Tensor:
    kind, settings = move
    if kind == "crop":
        left, right, top, bottom = settings["amounts"]
        return image[:, :, top : image.shape[2] - bottom, left : image.shape[3] - right]
    if kind == "pad":
        return F.pad(image, settings["amounts"], mode="circular")
    if kind == "gather":
        return image[:, settings["index"]]
    operation = F.pixel_shuffle if kind == "shuffle" else F.pixel_unshuffle
    return operation(image, settings["factor"])
