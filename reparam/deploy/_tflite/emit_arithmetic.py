"""Functions and arithmetic as operators of TFLite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .emitter import ACTIVATIONS, Emitter, emits

_FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("LOGISTIC", {}),
    "tanh": ("TANH", {}),
    "gelu": ("GELU", {"approximate": False}),
    "gelu_tanh": ("GELU", {"approximate": True}),
    "hardswish": ("HARD_SWISH", {}),
    "elu": ("ELU", {}),
    "exp": ("EXP", {}),
    "log": ("LOG", {}),
    "abs": ("ABS", {}),
    "sqrt": ("SQRT", {}),
    "sin": ("SIN", {}),
    "cos": ("COS", {}),
}


@emits("function")
def _function(to: Emitter, x: str, name: str) -> str:
    if name in _FUNCTIONS:
        kind, options = _FUNCTIONS[name]
        return to.operator(kind, x, **options)
    if name == "silu":
        return to.operator("MUL", x, to.operator("LOGISTIC", x))
    if name == "hardsigmoid":
        plus_three = to.operator("ADD", x, to.constant(3.0), fusedActivationFunction=3)  # RELU6
        return to.operator("MUL", plus_three, to.constant(1 / 6))
    if name == "mish":
        return to.operator("MUL", x, to.operator("TANH", _softplus(to, x)))
    assert name == "softplus", name
    return _softplus(to, x)


def _softplus(to: Emitter, x: str) -> str:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
    small = to.operator("EXP", to.operator("NEG", to.operator("ABS", x)))
    rest = to.operator("LOG", to.operator("ADD", small, to.constant(1.0)))
    return to.operator("ADD", to.operator("RELU", x), rest)


@emits("prelu")
def _prelu(to: Emitter, x: str, slopes: Tensor) -> str:
    if bool((slopes == slopes[0]).all()):
        return to.operator("LEAKY_RELU", x, alpha=float(slopes[0]))
    return to.operator("PRELU", x, to.constant(slopes[None, None]))


@emits("clamp")
def _clamp(to: Emitter, x: str, low: float | None, high: float | None) -> str:
    if (low, high) in ACTIVATIONS:
        return to.operator(ACTIVATIONS[low, high], x)
    x = x if low is None else to.operator("MAXIMUM", x, to.constant(low))
    return x if high is None else to.operator("MINIMUM", x, to.constant(high))


@emits("add")
def _add(to: Emitter, one: str, other: str) -> str:
    return to.with_activation("ADD", one, other)


@emits("multiply")
def _multiply(to: Emitter, one: str, other: str) -> str:
    return to.with_activation("MUL", one, other)


@emits("divide")
def _divide(to: Emitter, one: str, other: str) -> str:
    return to.with_activation("DIV", one, other)


@emits("maximum", "minimum")
def _extreme(to: Emitter, one: str, other: str) -> str:
    return to.operator(to.step.kind.upper(), one, other)


@emits("affine")
def _affine(to: Emitter, x: str, scale: Tensor, shift: Tensor) -> str:
    x = x if bool((scale == 1).all()) else to.operator("MUL", x, to.constant(_short(scale)))
    return x if bool((shift == 0).all()) else to.operator("ADD", x, to.constant(_short(shift)))


def _short(numbers: Tensor) -> Tensor:
    """A single number if all are the same."""
    return numbers[0] if bool((numbers == numbers[0]).all()) else numbers


@emits("power")
def _power(to: Emitter, x: str, exponent: float) -> str:
    if exponent == 2:
        return to.operator("MUL", x, x)
    if exponent == -1:
        return to.operator("DIV", to.constant(1.0), x)
    if math.fabs(exponent) == 0.5:
        return to.operator("SQRT" if exponent > 0 else "RSQRT", x)
    return to.operator("POW", x, to.constant(torch.tensor(exponent)))
