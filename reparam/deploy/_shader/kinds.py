"""Writes every kind of step as lines of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import floor

from torch import Tensor

from .._plain import Step
from .arithmetic import Groups, Language, Lines, Value, four, number
from .known import FUNCTIONS
from .passes import Pass, growth, is_spatial


def lines_of(one: Pass, language: Language) -> Lines:
    """The lines of a pass, for one thread."""
    lines = Lines(one, language)
    for step in one.steps:
        lines.know(step, _WRITERS[step.kind](lines, step))
    return lines


def _conv(lines: Lines, step: Step) -> Value:
    weight, bias = _dense(step), step.settings["bias"]
    if is_spatial(step):
        return [lines.sums(bias, _taps(lines, step, weight))]
    return [lines.sums(bias, iter([(weight[:, :, 0, 0], groups)])) for groups in lines.value(step.inputs[0])]


def _taps(lines: Lines, step: Step, weight: Tensor) -> Iterator[tuple[Tensor, Groups]]:
    height, width = weight.shape[2:]
    down, right = step.settings["dilation"]
    for row, column in product(range(height), range(width)):
        x, y = (column - width // 2) * right, (row - height // 2) * down
        yield weight[:, :, row, column], lines.around(step.inputs[0], x, y)


def _dense(step: Step) -> Tensor:
    """The weight of the equal convolution with one group."""
    weight, groups = step.settings["weight"], step.settings["groups"]
    outputs, inputs = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def _prelu(lines: Lines, step: Step) -> Value:
    slopes = step.settings["slopes"]
    return lines.each(step, lambda group, x: f"max({x}, vec4(0.0)) + {four(slopes, group)} * min({x}, vec4(0.0))")


def _clamp(lines: Lines, step: Step) -> Value:
    low, high = step.settings["low"], step.settings["high"]

    def expression(group: int, x: str) -> str:
        x = x if low is None else f"max({x}, vec4({number(low)}))"
        return x if high is None else f"min({x}, vec4({number(high)}))"

    return lines.each(step, expression)


def _function(lines: Lines, step: Step) -> Value:
    return lines.each(step, lambda group, x: FUNCTIONS[step.settings["name"]].format(x=x))


def _affine(lines: Lines, step: Step) -> Value:
    scale, shift = step.settings["scale"], step.settings["shift"]
    return lines.each(step, lambda group, x: f"{four(scale, group)} * {x} + {four(shift, group)}")


def _of_two(expression: str) -> Callable[[Lines, Step], Value]:
    return lambda lines, step: lines.each(step, lambda group, one, other: expression.format(one, other))


def _concat(lines: Lines, step: Step) -> Value:
    parts = zip(*map(lines.channels, step.inputs))
    return [lines.gathered([channel for part in pixel for channel in part]) for pixel in parts]


def _gather(lines: Lines, step: Step) -> Value:
    index = step.settings["index"].tolist()
    return [lines.gathered([pixel[channel] for channel in index]) for pixel in lines.channels(step.inputs[0])]


def _shuffle(lines: Lines, step: Step) -> Value:
    factor = growth(step)
    pixels = lines.channels(step.inputs[0])
    return [lines.gathered(pixels[old][place :: factor**2]) for old, place in _finer(len(pixels), factor)]


def _resize(lines: Lines, step: Step) -> Value:
    factor = growth(step)
    if step.settings["mode"] == "nearest":
        pixels = lines.value(step.inputs[0])
        return [pixels[old] for old, _ in _finer(len(pixels), factor)]
    return _bilinear(lines, step.inputs[0], factor)


def _finer(pixels: int, factor: int) -> Iterator[tuple[int, int]]:
    """For each pixel of a finer grid: the old pixel that contains it, and its index there."""
    side = round(pixels**0.5)
    for y, x in product(range(side * factor), repeat=2):
        yield (y // factor) * side + x // factor, (y % factor) * factor + x % factor


def _bilinear(lines: Lines, name: str, factor: int) -> Value:
    near = {(y, x): lines.border(name, x, y) for y, x in product((-1, 0, 1), repeat=2)}
    shares = [dict(_shares((2 * index + 1) / (2 * factor) - 0.5)) for index in range(factor)]
    return [
        [
            lines.constant(
                " + ".join(
                    f"{number(a * b)} * {near[y, x][group]}" for (y, a), (x, b) in product(down.items(), right.items())
                )
            )
            for group in range(len(near[0, 0]))
        ]
        for down, right in product(shares, repeat=2)
    ]


def _shares(place: float) -> Iterator[tuple[int, float]]:
    """The weights of the two neighbors for a position between them."""
    first = floor(place)
    yield from ((pixel, share) for pixel, share in ((first, first + 1 - place), (first + 1, place - first)) if share)


_WRITERS: dict[str, Callable[[Lines, Step], Value]] = {
    "conv": _conv,
    "prelu": _prelu,
    "clamp": _clamp,
    "function": _function,
    "affine": _affine,
    "add": _of_two("{} + {}"),
    "multiply": _of_two("{} * {}"),
    "maximum": _of_two("max({}, {})"),
    "minimum": _of_two("min({}, {})"),
    "concat": _concat,
    "gather": _gather,
    "shuffle": _shuffle,
    "resize": _resize,
}
