"""The steps of a plain network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FUNCTIONS = (
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
    "hardsigmoid",
    "hardswish",
    "softplus",
    "mish",
    "elu",
    "exp",
    "log",
    "abs",
    "sqrt",
    "sin",
    "cos",
)
"""Of a number, with the numbers that torch takes where it is told none."""


@dataclass(frozen=True)
class Step:
    r"""One operation on images (N, C, H, W), or on (N, C, 1, 1).

    | kind | inputs | settings |
    |---|---|---|
    | conv | 1 | weight (O, I/groups, h, w), bias (O,), stride, padding, dilation (vertical, horizontal), groups |
    | transposed | 1 | weight (I, O/groups, h, w), bias, stride, padding, output_padding, dilation, groups |
    | pad | 1 | amounts (left, right, top, bottom), mode: constant, reflect, replicate or circular; value |
    | crop | 1 | amounts (left, right, top, bottom) |
    | prelu | 1 | slopes (C,) |
    | clamp | 1 | low, high: numbers or None; ReLU is low = 0 |
    | function | 1 | name: one of `FUNCTIONS` |
    | add, multiply, divide, maximum, minimum | 2 | the second may have one channel, and it may have one pixel |
    | affine | 1 | scale (C,), shift (C,): scale * x + shift |
    | power | 1 | exponent: a number |
    | concat | 1 or more | of channels |
    | gather | 1 | index (C,): which channels, in which order |
    | shuffle, unshuffle | 1 | factor: as in `nn.PixelShuffle` and `nn.PixelUnshuffle` |
    | resize | 1 | factor (vertical, horizontal), mode: nearest, bilinear or bicubic; align_corners |
    | average, largest | 1 | kernel, stride, padding; average has count_include_pad: pooling |
    | mean | 1 | of height and width |
    """

    kind: str
    name: str
    """Of what it gives, unlike all others."""
    inputs: tuple[str, ...]
    """Names of what it takes: of earlier steps, or of the input of the network."""
    settings: Mapping[str, Any]
    """Numbers and tensors; weights and biases are the parameters of the network themselves, where they are some."""
    shape: tuple[int, ...]
    """Of what it gives for the example."""
    layer: str
    """The layer of the network that asked for it, as in `named_modules`; "" is the network."""


@dataclass(frozen=True)
class Plain:
    """A network of one input and one output, as steps in the order in which they are computed, all of them needed."""

    input: str
    input_shape: tuple[int, ...]
    """Of the example."""
    steps: tuple[Step, ...]
    output: str
    flat: bool = False
    """Whether the network gives (N, C) where the last step gives (N, C, 1, 1), as classifiers do."""
