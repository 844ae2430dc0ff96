"""Modules of other people's code that are known by their equations: their forward cannot be traced, or misleads."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from torch import Tensor, nn

from ...algebra._affine import add, after, padded, the_input
from ...algebra._linear import LinearOp, conv_op
from .layers import layer_of_torch, norm_op
from .trace import is_any_norm


def is_seq_conv(module: nn.Module) -> bool:
    """ECBSR's SeqConv3x3: a 1x1 convolution, and a 3x3 one or one filter per channel with a scale."""
    names = module._parameters.keys()
    return {"k0", "b0"} <= names and ({"k1", "b1"} <= names or {"scale", "bias", "mask"} <= names)


def _seq_conv(module: Any, like: Tensor) -> LinearOp:
    """The output of the 1x1 is padded with its bias, which equals padding the input first."""
    names = module._parameters.keys()
    second = (module.k1, module.b1) if "k1" in names else (module.scale * module.mask, module.bias)
    pads = tuple(((k - 1) // 2, k // 2) for k in second[0].shape[2:])
    value = after(padded(pads, "zeros", like), conv_op(module.k0, module.b0))
    return after(value, conv_op(*second, groups=1 if "k1" in names else len(second[1])))


ECB_PARTS = ("conv3x3", "conv1x1_3x3", "conv1x1_sbx", "conv1x1_sby", "conv1x1_lpl")


def ecb(module: Any, like: Tensor) -> LinearOp:
    """ECBSR's block, up to its activation."""
    first, *edges = (module._modules[name] for name in ECB_PARTS)
    values = [after(the_input(like), layer_of_torch(first, like)), *(_seq_conv(edge, like) for edge in edges)]
    return reduce(add, [*values, the_input(like)] if getattr(module, "with_idt", False) else values)


def is_bn_and_pad(module: nn.Module) -> bool:
    """DBB's BNAndPadLayer, which pads with its output for zeros; this equals padding its input."""
    bn = module._modules.get("bn")
    return bn is not None and is_any_norm(bn) and isinstance(getattr(module, "pad_pixels", None), int)


def _bn_and_pad(module: Any, like: Tensor) -> LinearOp:
    pads = ((module.pad_pixels,) * 2,) * 2
    return after(padded(pads, "zeros", like), norm_op(module.bn, like))


def is_conv3xc(module: nn.Module) -> bool:
    """SPAN's Conv3XC, whose eval forward writes into its own `eval_conv`."""
    sk, conv, fused = (module._modules.get(name) for name in ("sk", "conv", "eval_conv"))
    linear = not getattr(module, "has_relu", False)
    return linear and isinstance(sk, nn.Conv2d) and isinstance(fused, nn.Conv2d) and _three_convs(conv)


def _three_convs(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Sequential) and [isinstance(part, nn.Conv2d) for part in module] == [True] * 3


def _conv3xc(module: Any, like: Tensor) -> LinearOp:
    pads = layer_of_torch(module.eval_conv, like).pads
    value = padded(pads, "zeros", like)
    for conv in module.conv:
        value = after(value, layer_of_torch(conv, like))
    return add(value, layer_of_torch(module.sk, like))


EQUATIONS: list[tuple[Callable[[nn.Module], bool], Callable[[Any, Tensor], LinearOp]]] = [
    (is_seq_conv, _seq_conv),
    (is_bn_and_pad, _bn_and_pad),
    (is_conv3xc, _conv3xc),
]
"""Pairs of a test for a class and the equation of its modules."""


def equation_of(module: nn.Module) -> Callable[[Any, Tensor], LinearOp] | None:
    """The equation of a module, or None if it is not known."""
    return next((equation for fits, equation in EQUATIONS if fits(module)), None)


def is_whole_block(module: nn.Module) -> bool:
    """Whether a module is of a known class that becomes one convolution as a whole."""
    return is_seq_conv(module) or is_conv3xc(module)
