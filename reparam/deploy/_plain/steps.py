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
"""Functions of a number, with torch's default settings."""


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
    """A unique name for its output."""
    inputs: tuple[str, ...]
    """The names of its inputs: earlier steps, or the input of the network."""
    settings: Mapping[str, Any]
    """Numbers and tensors. Weights and biases are the network's own parameters, if they are parameters there."""
    shape: tuple[int, ...]
    """The shape of its output for the example."""
    layer: str
    """The layer that computes it, as in `named_modules`; "" for the network itself."""


@dataclass(frozen=True)
class Plain:
    """A network with one input and one output as the steps that are needed, in order of computation."""

    input: str
    input_shape: tuple[int, ...]
    """The shape of the example."""
    steps: tuple[Step, ...]
    output: str
    flat: bool = False
    """Whether the network returns (N, C), as classifiers do, while the last step returns (N, C, 1, 1)."""
