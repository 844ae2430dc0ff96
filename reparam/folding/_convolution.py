"""The convolution of a block that is folded on batch statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from ._correlation import Distances, correlation, lay_out, products_dtype, together


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x (N, C, H, W) with zero padding that keeps the size, and with a precise gradient to the weight.

    The gradient to a variance is the weight's gradient times a kernel. It cancels where the variance does, and its
    error reaches x. Only float32 on a CPU needs this: on other devices many threads share each sum, and float64 has
    enough digits.
    """
    single = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if single and not torch.is_autocast_enabled("cpu"):
        return _Convolution.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=_half(weight))


class _Convolution(torch.autograd.Function):
    """torch's convolution, except for the gradient to the weight."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=_half(weight))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, of_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_x = conv2d_input(x.shape, weight, of_y, padding=_half(weight)) if needs_x else None
        of_weight = _of_weight(x, weight, of_y) if needs_weight else None
        return of_x, of_weight, of_y.sum((0, 2, 3)) if needs_bias else None


def _of_weight(x: Tensor, weight: Tensor, of_y: Tensor) -> Tensor:
    """Correlate the gradient to y with x at the offsets of the taps."""
    down, across = _half(weight)
    reach, dtype, side_by_side = _half(weight), products_dtype(x), together(x)
    one, other = lay_out(of_y, reach, dtype, side_by_side), lay_out(x, reach, dtype, side_by_side)
    sums = correlation(one, other, [Distances(row, -across, across) for row in range(-down, down + 1)])
    return sums.transpose(1, 2).reshape(weight.shape).to(x)


def _half(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2
