"""Arithmetic on images as lines that are the same in GLSL and WGSL: four channels at a time, constants in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._plain import Step
from .passes import Pass

Groups = list[str]
"""The variables that hold the channels of one pixel, four in each; unused components of the last one are ignored."""
Value = list[Groups]
"""The pixels of a value in one thread, row by row: one, or factor² after a shuffle."""


class Language(NamedTuple):
    """What the languages write differently from each other."""

    constant: str
    """A line that gives a name to four numbers."""
    variable: str
    """The same, where they will change."""
    pair: str
    """The type of two whole numbers."""


class Lines:
    """Writes the lines of a pass, for one thread.

    The lines use names that are defined around them: `p`, the thread's pixel; `size`, the number of pixels; and for
    each value that is read a function `at_NAME(q, group)` of a pixel and a group, which is zero outside the image.
    """

    def __init__(self, one: Pass, language: Language) -> None:
        self.text: list[str] = []
        self._pass, self._language = one, language
        self._values: dict[str, Value] = {}
        self._channels = {name: stored.channels for name, stored in one.reads.items()}
        self._count = 0

    def know(self, step: Step, value: Value) -> None:
        """Store the result of a step."""
        self._channels[step.name] = step.shape[1]
        self._values[step.name] = value

    def value(self, name: str) -> Value:
        """The variables of a value that this pass computes, or reads at its own pixels."""
        if name not in self._values:
            stored = self._pass.reads[name]
            parts = stored.scale // self._pass.scale
            self._values[name] = [
                [
                    self.constant(self.at(name, f"p * {parts} + {self.pair(x, y)}", group))
                    for group in range(stored.groups)
                ]
                for y, x in product(range(parts), repeat=2)
            ]
        return self._values[name]

    def constant(self, numbers: str) -> str:
        """A new name for these four numbers."""
        return self._named(self._language.constant, numbers)

    def pair(self, x: int, y: int) -> str:
        """Two whole numbers."""
        return f"{self._language.pair}({x}, {y})"

    def at(self, name: str, pixel: str, group: int) -> str:
        """The expression that reads a value at a pixel."""
        return f"at_{name}({pixel}, {group})"

    def _named(self, line: str, numbers: str) -> str:
        self._count += 1
        self.text.append(line.format(f"v{self._count}", numbers))
        return f"v{self._count}"

    def around(self, name: str, x: int, y: int) -> Groups:
        """The neighbor of the thread's pixel, so many to the right and down; zeros outside the image."""
        stored = self._pass.reads[name]
        return [self.constant(self.at(name, f"p + {self.pair(x, y)}", group)) for group in range(stored.groups)]

    def border(self, name: str, x: int, y: int) -> Groups:
        """The same, but outside the image it is the nearest pixel of the border."""
        stored, pixel = self._pass.reads[name], f"clamp(p + {self.pair(x, y)}, {self._language.pair}(0), size - 1)"
        return [self.constant(self.at(name, pixel, group)) for group in range(stored.groups)]

    def sums(self, bias: Tensor, terms: Iterator[tuple[Tensor, Groups]]) -> Groups:
        """bias + the sum of weight @ x, from matrices (O, I)."""
        sums = [self._named(self._language.variable, four(bias, group)) for group in range(ceil(len(bias) / 4))]
        for weight, groups in terms:
            for (row, total), (column, x) in product(enumerate(sums), enumerate(groups)):
                block = weight[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                if bool(block.any()):
                    self.text.append(f"{total} += {matrix_times(block, x)};")
        return sums

    def each(self, step: Step, expression: Callable[..., str]) -> Value:
        """A value whose every four channels follow from those of the inputs, by an expression of group and names."""
        inputs = [self.value(name) for name in step.inputs]
        groups = range(ceil(step.shape[1] / 4))
        return [
            [self.constant(expression(group, *self._of_group(step, pixels, group))) for group in groups]
            for pixels in zip(*inputs)
        ]

    def _of_group(self, step: Step, pixels: Sequence[Groups], group: int) -> Iterator[str]:
        for name, one in zip(step.inputs, pixels):
            spread = self._channels[name] == 1 < step.shape[1]
            yield f"vec4({one[0]}.x)" if spread else one[group]

    def channels(self, name: str) -> list[list[str]]:
        """Every channel of every pixel by itself."""
        return [
            [f"{groups[channel // 4]}.{'xyzw'[channel % 4]}" for channel in range(self._channels[name])]
            for groups in self.value(name)
        ]

    def gathered(self, channels: Sequence[str]) -> Groups:
        """Pack channels into groups of four. A group that exists in this order is not written again."""
        return [self._four(channels[first : first + 4]) for first in range(0, len(channels), 4)]

    def _four(self, channels: Sequence[str]) -> str:
        name = channels[0].split(".")[0]
        if list(channels) == [f"{name}.{letter}" for letter in "xyzw"[: len(channels)]]:
            return name
        return self.constant(f"vec4({', '.join([*channels, *['0.0'] * (4 - len(channels))])})")


def number(value: float) -> str:
    """The shortest text that has the same value in float32."""
    return str(np.float32(value))


def four(numbers: Tensor, group: int) -> str:
    """The constants of a group of channels."""
    some = numbers[4 * group : 4 * group + 4].tolist()
    return f"vec4({', '.join(map(number, some + [0.0] * (4 - len(some))))})"


def matrix_times(block: Tensor, x: str) -> str:
    """block @ x, for a block of up to 4x4; both languages write a matrix column by column."""
    columns = torch.zeros(4, block.shape[1])
    columns[: len(block)] = block
    width = block.shape[1]
    if width == 1:
        return f"{four(columns[:, 0], 0)} * {x}.x"
    if width == 4 and torch.equal(columns, columns.diag().diag()):  # of a depthwise convolution
        return f"{four(columns.diag(), 0)} * {x}"
    numbers = ", ".join(map(number, columns.T.flatten().tolist()))
    return f"mat{width}x4({numbers}) * {x}{'.xyzw'[: width + 1] if width < 4 else ''}"
