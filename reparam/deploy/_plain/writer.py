"""Records the tensors of a network while it runs, and the steps that computed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .moves import as_moves, one_pixel_of, places
from .steps import Step


class Value(NamedTuple):
    """A tensor that depends on the image: the output of a step, or a view of it."""

    step: str
    """The name of the step."""
    shape: tuple[int, ...]
    """The shape of the step's output."""
    where: Tensor | None = None
    """The indices of the tensor's elements in that output, if anything was moved."""
    layer: str = ""
    """The layer that moved it."""


LOST = Value("", ())
"""Marks a tensor that depends on the image but is not a step's output, or shares memory that was changed in place."""


class Writer:
    """Records steps, and tracks the tensors that depend on the image."""

    def __init__(self, image: Tensor) -> None:
        self.values: Any = WeakTensorKeyDictionary()
        """A `Value` for each live tensor."""
        self.values[image] = Value("input", tuple(image.shape))
        self.steps: list[Step] = []
        self.layer = ""

    def knows(self, value: Any) -> bool:
        """Whether it depends on the image."""
        return isinstance(value, Tensor) and value in self.values

    def move(self, result: Tensor, source: Value, index: Tensor) -> None:
        """Record the indices of a tensor's elements in its source."""
        self.values[result] = Value(source.step, source.shape, index, self.layer)

    def image_of(self, tensor: Tensor, broadcasts: bool = False) -> Tensor | None:
        """The tensor as the output (N, C, H, W) of a step, with the steps that move it recorded; None if impossible.

        Args:
            tensor: a tracked tensor.
            broadcasts: whether one pixel is enough if all are the same.
        """
        value = self.values[tensor]
        if not value.step or (value.where is None and tensor.dim() == 4):
            return tensor if value.step else None
        index = places(value.shape) if value.where is None else value.where
        index = one_pixel_of(index) if broadcasts and value.shape[2:] == (1, 1) else index
        if (moves := as_moves(index, value.shape)) is None:
            return None
        name, shape = value.step, value.shape
        for (kind, settings), shape in moves:
            name = self._append(kind, (name,), settings, shape, value.layer)
        if tensor.shape == shape:
            self.values[tensor] = Value(name, shape)
            return tensor
        image = tensor.new_empty(()).expand(shape)  # only its shape is used
        self.values[image] = Value(name, shape)
        return image

    def write(self, result: Tensor, kind: str, *inputs: Tensor, **settings: Any) -> bool:
        """Record the step that computed the result, which is (N, C, H, W) or (N, C)."""
        if result.dim() not in (2, 4):
            return False
        shape = (*result.shape, 1, 1)[:4]
        settings = {key: _kept(value) for key, value in settings.items()}
        name = self._append(kind, tuple(self.values[one].step for one in inputs), settings, shape, self.layer)
        self.values[result] = Value(name, shape, None if result.dim() == 4 else places(shape)[:, :, 0, 0])
        return True

    def _append(self, kind: str, inputs: Any, settings: Any, shape: tuple[int, ...], layer: str) -> str:
        name = f"{kind}_{len(self.steps)}"
        self.steps.append(Step(kind, name, inputs, settings, shape, layer))
        return name


Reader = Callable[..., bool]
READERS: dict[str, Reader] = {}
"""By the name of the operation: a function of a writer, the result for the example, and the arguments by name, which
returns whether the operation, called in this way, is one of the steps."""


def reads(*operations: str) -> Callable[[Reader], Reader]:
    """Register a reader."""

    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(operations, reader))
        return reader

    return register


def per_channel(numbers: Any, image: Tensor) -> Tensor | None:
    """A constant as (C,); None unless it is one number, or one per channel of an image (N, C, H, W)."""
    numbers = torch.as_tensor(numbers, dtype=image.dtype)
    channels = image.shape[1]
    if (1, 1, 1, 1, *numbers.shape)[-4:] not in ((1, 1, 1, 1), (1, channels, 1, 1)) or numbers.dim() > 4:
        return None
    return numbers.reshape(-1).expand(channels)


def pair(numbers: Any) -> tuple[int, int]:
    """A pair from a list of one number or two."""
    numbers = list(numbers)
    return (numbers[0], numbers[-1])


def _kept(value: Any) -> Any:
    """A parameter itself, or a copy of another tensor, because the network may change it later."""
    if isinstance(value, nn.Parameter):
        return value
    return value.detach().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
