"""Checks that a network can be written as a shader, and names the layer that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError
from .._plain import Plain, Step
from .passes import Pass

FUNCTIONS = {
    "sigmoid": "1.0 / (1.0 + exp(-{x}))",
    "tanh": "2.0 / (1.0 + exp(-2.0 * {x})) - 1.0",
    "silu": "{x} / (1.0 + exp(-{x}))",
    "gelu_tanh": "{x} / (1.0 + exp(-1.59576912 * ({x} + 0.044715 * {x} * {x} * {x})))",
    "hardsigmoid": "clamp({x} / 6.0 + 0.5, vec4(0.0), vec4(1.0))",
    "hardswish": "{x} * clamp({x} / 6.0 + 0.5, vec4(0.0), vec4(1.0))",
    "softplus": "max({x}, vec4(0.0)) + log(1.0 + exp(-abs({x})))",
    "elu": "max({x}, vec4(0.0)) + exp(min({x}, vec4(0.0))) - 1.0",
    "exp": "exp({x})",
    "abs": "abs({x})",
    "sin": "sin({x})",
}
"""By name, for four values x at once, in the syntax common to GLSL and WGSL; $2 \\sqrt{2 / \\pi} = 1.59576912$."""

MAX_TEXTURES = 15
"""How many textures a pass can read besides the image: mpv and libplacebo bind 16."""

_KINDS = (
    *("conv", "prelu", "clamp", "function", "affine", "add", "multiply", "maximum", "minimum"),
    *("concat", "gather", "shuffle", "resize"),
)


def check_steps(plain: Plain) -> None:
    """Refuse a network that passes over pixels cannot compute.

    Raises:
        ExportError: if a step is not known; the message names the layer.
    """
    colors = plain.input_shape[1]
    if colors not in (1, 3):
        raise ExportError(f"players have 1 color (luma) or 3 (RGB), but the network takes {colors}")
    for step in plain.steps:
        for reason in _reasons(step):
            raise ExportError(f"{step.layer or 'the network'} is {reason}, which a player's shader cannot express")
    height, width, *_ = (out / taken for out, taken in zip(_output_shape(plain)[2:], plain.input_shape[2:]))
    given = _output_shape(plain)[1]
    if given != colors or height != width or height != int(height):
        raise ExportError(
            f"players need as many colors as they provide, {colors}, and one whole scale for both sides, but the "
            f"network returns {given} colors and scales by {height:g} and {width:g}"
        )


def check_passes(passes: tuple[Pass, ...]) -> None:
    """Refuse passes that read more textures than a player allows.

    Raises:
        ExportError: if a pass reads from too many others.
    """
    for one in passes:
        if len(one.textures) > MAX_TEXTURES:
            layer = one.steps[-1].layer or "the network"
            raise ExportError(
                f"{layer} reads the outputs of {len(one.textures)} layers, but players let a shader read at most "
                f"{MAX_TEXTURES} besides the image"
            )


def _output_shape(plain: Plain) -> tuple[int, ...]:
    shapes = {step.name: step.shape for step in plain.steps}
    return shapes.get(plain.output, plain.input_shape)


def _reasons(step: Step) -> Iterator[str]:
    """Why a step cannot be written."""
    settings = step.settings
    if step.kind not in _KINDS:
        yield f"a step of the kind {step.kind}"
    elif step.kind == "conv":
        yield from _against_conv(settings)
    elif step.kind == "function" and settings["name"] not in FUNCTIONS:
        yield f"the function {settings['name']}"
    elif step.kind == "resize":
        yield from _against_resize(settings)
    for name, value in settings.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            yield f"a step of the kind {step.kind} with values in {name} that are not finite"


def _against_conv(settings: Any) -> Iterator[str]:
    kernel, padding = settings["weight"].shape[2:], settings["padding"]
    same = tuple(dilation * (size - 1) / 2 for size, dilation in zip(kernel, settings["dilation"]))
    if settings["stride"] != (1, 1):
        yield f"a convolution of stride {settings['stride']}"
    elif tuple(padding) != same:
        yield f"a convolution {kernel[0]}x{kernel[1]} of padding {padding}, which changes the size and"


def _against_resize(settings: Any) -> Iterator[str]:
    (height, width), mode = settings["factor"], settings["mode"]
    if height != width or height != int(height):
        yield f"a resize by {height:g} and {width:g}"
    elif mode == "bicubic" or settings["align_corners"]:
        yield f"a {mode} resize with align_corners={settings['align_corners']}"
