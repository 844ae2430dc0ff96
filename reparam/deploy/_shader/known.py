"""What a shader can say, and the refusal of all else, by the name of the layer."""

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
"""By name, for four numbers x at once, in what GLSL and WGSL write alike; $2 \\sqrt{2 / \\pi} = 1.59576912$."""

MAX_TEXTURES = 15
"""That a pass can read from beside the image: mpv and libplacebo bind 16."""

_KINDS = (
    *("conv", "prelu", "clamp", "function", "affine", "add", "multiply", "maximum", "minimum"),
    *("concat", "gather", "shuffle", "resize"),
)


def check_steps(plain: Plain) -> None:
    """Refuses a network that no pass over pixels computes.

    Raises:
        ExportError: for what is not known, with the name of the layer.
    """
    colors = plain.input_shape[1]
    if colors not in (1, 3):
        raise ExportError(f"players have 1 colour (luma) or 3 (RGB), but the network takes {colors}")
    for step in plain.steps:
        for reason in _reasons(step):
            raise ExportError(f"{step.layer or 'the network'} is {reason}, which a shader of a player cannot say")
    height, width, *_ = (out / taken for out, taken in zip(_output_shape(plain)[2:], plain.input_shape[2:]))
    given = _output_shape(plain)[1]
    if given != colors or height != width or height != int(height):
        raise ExportError(
            f"players want as many colours as they gave, {colors}, and both sides grown by one whole number, but the "
            f"network gives {given} colours and sides times {height:g} and {width:g}"
        )


def check_passes(passes: tuple[Pass, ...]) -> None:
    """Refuses passes that read more than a player lets them.

    Raises:
        ExportError: for a pass that takes from too many others.
    """
    for one in passes:
        if len(one.textures) > MAX_TEXTURES:
            layer = one.steps[-1].layer or "the network"
            raise ExportError(
                f"{layer} takes what {len(one.textures)} layers gave, and players let a shader read at most "
                f"{MAX_TEXTURES} beside the image"
            )


def _output_shape(plain: Plain) -> tuple[int, ...]:
    shapes = {step.name: step.shape for step in plain.steps}
    return shapes.get(plain.output, plain.input_shape)


def _reasons(step: Step) -> Iterator[str]:
    """What stands against a step."""
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
            yield f"a step of the kind {step.kind} with numbers in {name} that are not finite"


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
