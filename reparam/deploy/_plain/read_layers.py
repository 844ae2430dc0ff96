"""Reads layers as steps: convolutions, norms, padding, pooling, upsampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .writer import Writer, pair, reads


@reads("convolution")
def _convolution(
    to: Writer, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, **numbers: Any
) -> bool:
    if to.knows(weight) or to.knows(bias) or weight.dim() != 4:
        return False
    settings = {name: pair(numbers[name]) for name in ("stride", "padding", "dilation")}
    settings |= {"output_padding": pair(numbers["output_padding"])} if transposed else {}
    bias = weight.new_zeros(result.shape[1]) if bias is None else bias
    kind = "transposed" if transposed else "conv"
    return to.write(result, kind, input, weight=weight, bias=bias, groups=numbers["groups"], **settings)


@reads("addmm")
def _linear(
    to: Writer, result: Tensor, self: Tensor, mat1: Tensor, mat2: Tensor, beta: float = 1, alpha: float = 1
) -> bool:
    if to.knows(self) or not to.knows(mat1) or to.knows(mat2):
        return False
    return _pointwise(to, result, mat1, alpha * mat2.t()[:, :, None, None], beta * self.expand(mat2.shape[1]))


@reads("mm")
def _product(to: Writer, result: Tensor, self: Tensor, mat2: Tensor) -> bool:
    if not to.knows(self) or to.knows(mat2):
        return False
    return _pointwise(to, result, self, mat2.t()[:, :, None, None], mat2.new_zeros(mat2.shape[1]))


@reads("mean")
def _mean(to: Writer, result: Tensor, self: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> bool:
    axes = sorted(axis % 4 for axis in dim or ())
    if axes == [2, 3]:
        return to.write(result, "mean", self)
    if axes != [1] or not keepdim:
        return False
    channels = self.shape[1]
    return _pointwise(to, result, self, self.new_full((1, channels, 1, 1), 1 / channels), self.new_zeros(1))


def _pointwise(to: Writer, result: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> bool:
    plain: Any = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    return to.write(result, "conv", image, weight=weight, bias=bias, **plain)


@reads("native_batch_norm", "_native_batch_norm_legit_no_training")
def _norm(
    to: Writer, result: Any, input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, **others: Any
) -> bool:
    if others.get("training") or running_mean is None or any(map(to.knows, (weight, bias))):
        return False
    scale = (running_var + others["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return to.write(result[0], "affine", input, scale=scale, shift=shift)


@reads("constant_pad_nd")
def _constant_pad(to: Writer, result: Tensor, self: Tensor, pad: Any, value: float) -> bool:
    amounts = (*pad, 0, 0)[:4]
    if len(pad) > 4 or min(amounts) < 0:
        return False
    return to.write(result, "pad", self, amounts=amounts, mode="constant", value=float(value))


def _pads(mode: str, operation: str) -> None:
    @reads(operation)
    def _read(to: Writer, result: Tensor, self: Tensor, padding: Any) -> bool:
        return min(padding) >= 0 and to.write(result, "pad", self, amounts=tuple(padding), mode=mode, value=0.0)


_pads("reflect", "reflection_pad2d")
_pads("replicate", "replication_pad2d")


def _resizes(mode: str, operation: str) -> None:
    @reads(operation)
    def _read(
        to: Writer, result: Tensor, self: Tensor, scales_h: Any, scales_w: Any, align_corners: bool = False, **_: Any
    ) -> bool:
        factor = tuple(new / old for new, old in zip(result.shape[2:], self.shape[2:]))
        known = (scales_h or factor[0], scales_w or factor[1]) == factor
        known = known and ("exact" not in operation or all(one.is_integer() for one in factor))  # else half a pixel off
        return known and to.write(result, "resize", self, factor=factor, mode=mode, align_corners=align_corners)


_resizes("nearest", "upsample_nearest2d")
_resizes("nearest", "_upsample_nearest_exact2d")
_resizes("bilinear", "upsample_bilinear2d")
_resizes("bicubic", "upsample_bicubic2d")


@reads("avg_pool2d")
def _average(to: Writer, result: Tensor, self: Tensor, ceil_mode: bool, divisor_override: Any, **numbers: Any) -> bool:
    if ceil_mode or divisor_override:
        return False
    counted = numbers["count_include_pad"]
    return to.write(result, "average", self, **_pooling(**numbers), count_include_pad=counted)


@reads("max_pool2d_with_indices")
def _largest(to: Writer, result: Any, self: Tensor, ceil_mode: bool, dilation: Any, **numbers: Any) -> bool:
    if ceil_mode or pair(dilation) != (1, 1):
        return False
    return to.write(result[0], "largest", self, **_pooling(**numbers))


def _pooling(kernel_size: Any, stride: Any, padding: Any, **_: Any) -> dict[str, Any]:
    kernel = pair(kernel_size)
    return {"kernel": kernel, "stride": pair(stride or kernel), "padding": pair(padding)}


@reads("cat")
def _cat(to: Writer, result: Tensor, tensors: Any, dim: int) -> bool:
    return dim % result.dim() == 1 and all(map(to.knows, tensors)) and to.write(result, "concat", *tensors)
