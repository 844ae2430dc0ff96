"""What the steps of a plain network compute, each from what its row of the table in `Step` says."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.deploy._plain import Plain, Step

FUNCTIONS = {
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: 2 / (1 + torch.exp(-2 * x)) - 1,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "hardsigmoid": lambda x: ((x + 3) / 6).clip(0, 1),
    "hardswish": lambda x: x * ((x + 3) / 6).clip(0, 1),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
}


def column(numbers: Tensor) -> Tensor:
    return numbers[None, :, None, None]


def conv(x, weight, bias, **numbers):
    return F.conv2d(x, weight, bias, **numbers)


def shuffle(x: Tensor, factor: int) -> Tensor:
    n, c, h, w = x.shape
    y = x.new_empty(n, c // factor**2, h * factor, w * factor)
    for row in range(factor):
        for col in range(factor):
            y[:, :, row::factor, col::factor] = x[:, row * factor + col :: factor**2]
    return y


def unshuffle(x: Tensor, factor: int) -> Tensor:
    parts = [x[:, :, row::factor, col::factor] for row in range(factor) for col in range(factor)]
    return torch.stack(parts, 2).flatten(1, 2)


def pad(x: Tensor, amounts, mode, value) -> Tensor:
    return F.pad(x, amounts, mode, value) if mode == "constant" else F.pad(x, amounts, mode)


def crop(x: Tensor, amounts) -> Tensor:
    left, right, top, bottom = amounts
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def resize(x: Tensor, factor, mode, align_corners) -> Tensor:
    size = [round(old * one) for old, one in zip(x.shape[2:], factor)]
    return F.interpolate(x, size, mode=mode, **({} if mode == "nearest" else {"align_corners": align_corners}))


KINDS = {
    "conv": conv,
    "transposed": lambda x, weight, bias, **numbers: F.conv_transpose2d(x, weight, bias, **numbers),
    "pad": pad,
    "crop": crop,
    "prelu": lambda x, slopes: x.clip(min=0) + column(slopes) * x.clip(max=0),
    "clamp": lambda x, low, high: x.clip(-math.inf if low is None else low, math.inf if high is None else high),
    "function": lambda x, name: FUNCTIONS[name](x),
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y,
    "divide": lambda x, y: x / y,
    "maximum": lambda x, y: torch.where(x > y, x, y.expand_as(x)),
    "minimum": lambda x, y: torch.where(x < y, x, y.expand_as(x)),
    "affine": lambda x, scale, shift: column(scale) * x + column(shift),
    "power": lambda x, exponent: x**exponent,
    "concat": lambda *xs: torch.cat(xs, 1),
    "gather": lambda x, index: x[:, index],
    "shuffle": shuffle,
    "unshuffle": unshuffle,
    "resize": resize,
    "average": lambda x, kernel, stride, padding, count_include_pad: F.avg_pool2d(
        x, kernel, stride, padding, count_include_pad=count_include_pad
    ),
    "largest": lambda x, kernel, stride, padding: F.max_pool2d(x, kernel, stride, padding),
    "mean": lambda x: x.flatten(2).mean(2)[:, :, None, None],
}


def numbers_of(plain: Plain, image: Tensor) -> Tensor:
    """What the steps give for an image."""
    values = {plain.input: image}
    for step in plain.steps:
        values[step.name] = _of_one(step, [values[name] for name in step.inputs])
        assert values[step.name].shape[1] == step.shape[1], step
    result = values[plain.output]
    return result[:, :, 0, 0] if plain.flat else result


def _of_one(step: Step, inputs: list[Tensor]) -> Tensor:
    return KINDS[step.kind](*inputs, **step.settings)
