"""Reads functions and arithmetic as steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .steps import FUNCTIONS
from .writer import Writer, per_channel, reads

_USUAL = {"beta": 1, "threshold": 20, "alpha": 1, "scale": 1, "input_scale": 1, "approximate": "none"}
"""torch's defaults."""


def _function(operation: str) -> None:
    @reads(operation)
    def _read(to: Writer, result: Tensor, self: Tensor, **numbers: Any) -> bool:
        tanh = numbers.pop("approximate", "none") == "tanh"
        usual = all(value == _USUAL[key] for key, value in numbers.items())
        return usual and to.write(result, "function", self, name="gelu_tanh" if tanh else operation)


for _operation in FUNCTIONS:
    if _operation != "gelu_tanh":
        _function(_operation)


@reads("_prelu_kernel")
def _prelu(to: Writer, result: Tensor, self: Tensor, weight: Tensor) -> bool:
    slopes = None if to.knows(weight) else per_channel(weight, self)
    return slopes is not None and to.write(result, "prelu", self, slopes=slopes)


@reads("leaky_relu")
def _leaky(to: Writer, result: Tensor, self: Tensor, negative_slope: float) -> bool:
    return to.write(result, "prelu", self, slopes=self.new_full(self.shape[1:2], negative_slope))


@reads("relu")
def _relu(to: Writer, result: Tensor, self: Tensor) -> bool:
    return to.write(result, "clamp", self, low=0.0, high=None)


@reads("relu6")
def _relu6(to: Writer, result: Tensor, self: Tensor) -> bool:
    return to.write(result, "clamp", self, low=0.0, high=6.0)


@reads("hardtanh")
def _hardtanh(to: Writer, result: Tensor, self: Tensor, min_val: float, max_val: float) -> bool:
    return to.write(result, "clamp", self, low=float(min_val), high=float(max_val))


@reads("clamp", "clamp_min", "clamp_max")
def _clamp(to: Writer, result: Tensor, self: Tensor, min: Any = None, max: Any = None) -> bool:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return False
    low, high = (None if one is None else float(one) for one in (min, max))
    return to.write(result, "clamp", self, low=low, high=high)


@reads("pow")
def _power(to: Writer, result: Tensor, self: Any, exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and to.write(result, "power", self, exponent=float(exponent))


@reads("reciprocal")
def _reciprocal(to: Writer, result: Tensor, self: Tensor) -> bool:
    return to.write(result, "power", self, exponent=-1.0)


@reads("rsqrt")
def _inverse_root(to: Writer, result: Tensor, self: Tensor) -> bool:
    return to.write(result, "power", self, exponent=-0.5)


@reads("neg")
def _negative(to: Writer, result: Tensor, self: Tensor) -> bool:
    return _affine(to, result, self, -1.0, 0.0)


@reads("add")
def _sum(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return _summed(to, result, self, other, alpha)


@reads("sub")
def _difference(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return _summed(to, result, self, other, -alpha)


@reads("rsub")
def _reversed(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return _summed(to, result, other, self, -alpha)


def _summed(to: Writer, result: Tensor, one: Any, other: Any, factor: float) -> bool:
    """one + factor * other"""
    if not to.knows(other):
        return _affine(to, result, one, 1.0, factor * torch.as_tensor(other, dtype=result.dtype))
    if not to.knows(one):
        return _affine(to, result, other, factor, one)
    if factor != 1:
        scaled = torch.empty_like(other)
        other = scaled if _affine(to, scaled, other, factor, 0.0) else other
    return _of_two(to, result, "add", one, other)


@reads("mul")
def _product(to: Writer, result: Tensor, self: Any, other: Any) -> bool:
    if to.knows(self) and to.knows(other):
        return _of_two(to, result, "multiply", self, other)
    image, number = (self, other) if to.knows(self) else (other, self)
    return _affine(to, result, image, number, 0.0)


@reads("div")
def _quotient(to: Writer, result: Tensor, self: Any, other: Any, rounding_mode: Any = None) -> bool:
    if rounding_mode is not None:
        return False
    if not to.knows(other):
        return _affine(to, result, self, torch.as_tensor(other, dtype=result.dtype).reciprocal(), 0.0)
    if to.knows(self):
        return _wide_first(self, other)[0] is self and _of_two(to, result, "divide", self, other)
    inverse = torch.empty_like(other)
    return to.write(inverse, "power", other, exponent=-1.0) and _affine(to, result, inverse, self, 0.0)


def _extremes(kind: str) -> None:
    @reads(kind)
    def _read(to: Writer, result: Tensor, self: Any, other: Any) -> bool:
        return to.knows(self) and to.knows(other) and _of_two(to, result, kind, self, other)


_extremes("maximum")
_extremes("minimum")


def _affine(to: Writer, result: Tensor, image: Tensor, scale: Any, shift: Any) -> bool:
    """scale * image + shift, of numbers or of tensors with a number per channel"""
    scales, shifts = per_channel(scale, image), per_channel(shift, image)
    if scales is None or shifts is None or result.shape != image.shape:
        return False
    return to.write(result, "affine", image, scale=scales, shift=shifts)


def _of_two(to: Writer, result: Tensor, kind: str, *both: Tensor) -> bool:
    """A step of an image and another one, which may have fewer channels or pixels."""
    wide, small = _wide_first(*both)
    fits = small.shape[1:2] in (wide.shape[1:2], (1,)) and small.shape[2:] in (wide.shape[2:], (1, 1))
    return fits and wide.dim() == 4 and result.shape == wide.shape and to.write(result, kind, wide, small)


def _wide_first(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return (one, other) if one.numel() >= other.numel() else (other, one)
