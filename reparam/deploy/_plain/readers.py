"""What each operation of torch is as steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .steps import Step


@dataclass(frozen=True)
class Writer:
    """Writes steps, and knows the names of values that come from the image."""

    names: dict[int, tuple[str, Tensor]]
    """By the id of a tensor, which is kept, as another one might get its id."""
    steps: list[Step]
    layer: str

    def knows(self, value: Any) -> bool:
        """Whether it comes from the image."""
        return id(value) in self.names

    def is_same(self, result: Tensor, as_was: Tensor) -> bool:
        """Says that nothing was computed."""
        self.names[id(result)] = (self.names[id(as_was)][0], result)
        return True

    def write(self, result: Tensor, kind: str, *inputs: Tensor, **settings: Any) -> bool:
        """Says which step gave the result."""
        name = f"{kind}_{len(self.steps)}"
        sources = tuple(self.names[id(one)][0] for one in inputs)
        self.steps.append(Step(kind, name, sources, settings, tuple(result.shape), self.layer))
        self.names[id(result)] = (name, result)
        return True


Reader = Callable[..., bool]
READERS: dict[str, Reader] = {}
"""By the name of the operation: from a writer, the result for the example, and the arguments by name, to whether the
operation, called in this way, is one of the steps."""


def _reads(*operations: str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(operations, reader))
        return reader

    return register


@_reads(
    "clone",
    "contiguous",
    "detach",
    "alias",
    "lift_fresh",
    "_to_copy",
    "expand",
    "view",
    "_unsafe_view",
    "_reshape_alias",
)
def _as_it_was(to: Writer, result: Tensor, self: Tensor, **_: Any) -> bool:
    return result.shape == self.shape and result.dtype == self.dtype and to.is_same(result, self)


@_reads("convolution")
def _convolution(
    to: Writer, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, **numbers: Any
) -> bool:
    if to.knows(weight) or to.knows(bias) or weight.dim() != 4:
        return False
    output_padding = _pair(numbers["output_padding"])
    settings = {name: _pair(numbers[name]) for name in ("stride", "padding", "dilation")} | {
        "groups": numbers["groups"]
    }
    settings |= {"weight": weight, "bias": weight.new_zeros(result.shape[1]) if bias is None else bias}
    if transposed:
        return to.write(result, "transposed", input, **settings, output_padding=output_padding)
    return to.write(result, "conv", input, **settings)


@_reads("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _norm(
    to: Writer, result: Any, input: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, **others: Any
) -> bool:
    if others.get("training") or running_mean is None:
        return False
    scale = (running_var + others["eps"]).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return to.write(result[0], "affine", input, scale=scale, shift=shift)


@_reads("constant_pad_nd")
def _constant_pad(to: Writer, result: Tensor, self: Tensor, pad: Any, value: float) -> bool:
    amounts = (*pad, 0, 0)[:4]
    return len(pad) <= 4 and to.write(result, "pad", self, amounts=tuple(amounts), mode="constant", value=float(value))


def _pads(mode: str, operation: str) -> None:
    @_reads(operation)
    def _read(to: Writer, result: Tensor, self: Tensor, padding: Any) -> bool:
        return to.write(result, "pad", self, amounts=tuple(padding), mode=mode, value=0.0)


_pads("reflect", "reflection_pad2d")
_pads("replicate", "replication_pad2d")


@_reads("_prelu_kernel")
def _prelu(to: Writer, result: Tensor, self: Tensor, weight: Tensor) -> bool:
    slopes = None if to.knows(weight) else _per_channel(weight, self)
    return slopes is not None and to.write(result, "prelu", self, slopes=slopes)


@_reads("leaky_relu")
def _leaky(to: Writer, result: Tensor, self: Tensor, negative_slope: float) -> bool:
    return to.write(result, "prelu", self, slopes=torch.full(self.shape[1:2], float(negative_slope)))


@_reads("relu")
def _relu(to: Writer, result: Tensor, self: Tensor) -> bool:
    return to.write(result, "clamp", self, low=0.0, high=None)


@_reads("hardtanh")
def _hardtanh(to: Writer, result: Tensor, self: Tensor, min_val: float, max_val: float) -> bool:
    return to.write(result, "clamp", self, low=float(min_val), high=float(max_val))


@_reads("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(to: Writer, result: Tensor, self: Tensor, min: Any = None, max: Any = None) -> bool:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return False
    low, high = (None if one is None else float(one) for one in (min, max))
    return to.write(result, "clamp", self, low=low, high=high)


def _function(operation: str) -> None:
    @_reads(operation)
    def _read(to: Writer, result: Tensor, self: Tensor, **numbers: Any) -> bool:
        name = "gelu_tanh" if numbers.get("approximate") == "tanh" else operation
        usual = {
            "beta": 1,
            "threshold": 20,
            "alpha": 1,
            "scale": 1,
            "input_scale": 1,
            "approximate": numbers.get("approximate"),
        }
        return all(value == usual[key] for key, value in numbers.items()) and to.write(
            result, "function", self, name=name
        )


FUNCTIONS = (
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "softplus",
    "mish",
    "elu",
    "exp",
    "abs",
    "sqrt",
    "sin",
)
for _operation in FUNCTIONS:
    _function(_operation)


@_reads("neg")
def _negative(to: Writer, result: Tensor, self: Tensor) -> bool:
    return _affine(to, result, self, -1.0, 0.0)


@_reads("pow")
def _power(to: Writer, result: Tensor, self: Tensor, exponent: Any) -> bool:
    return isinstance(exponent, (int, float)) and to.write(result, "power", self, exponent=float(exponent))


@_reads("add")
def _sum(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return _summed(to, result, self, other, alpha)


@_reads("sub")
def _difference(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return _summed(to, result, self, other, -alpha)


@_reads("rsub")
def _reversed(to: Writer, result: Tensor, self: Any, other: Any, alpha: float = 1) -> bool:
    return alpha == 1 and _summed(to, result, other, self, -1)


def _summed(to: Writer, result: Tensor, one: Any, other: Any, factor: float) -> bool:
    """one + factor * other"""
    if not to.knows(other):
        return _affine(to, result, one, 1.0, other * factor)
    if not to.knows(one):
        return _affine(to, result, other, factor, one)
    if not _fits(one, other):
        return False
    if factor != 1:
        other = _scaled(to, other, factor)
    return to.write(result, "add", *_wide_first(one, other))


@_reads("mul")
def _product(to: Writer, result: Tensor, self: Any, other: Any) -> bool:
    if to.knows(self) and to.knows(other):
        return _fits(self, other) and to.write(result, "multiply", *_wide_first(self, other))
    image, number = (self, other) if to.knows(self) else (other, self)
    return _affine(to, result, image, number, 0.0)


@_reads("div")
def _quotient(to: Writer, result: Tensor, self: Any, other: Any, rounding_mode: Any = None) -> bool:
    if rounding_mode is not None or not to.knows(self):
        return False
    if to.knows(other):
        return self.numel() >= other.numel() and _fits(self, other) and to.write(result, "divide", self, other)
    return _affine(to, result, self, 1 / other, 0.0)


def _extremes(kind: str) -> None:
    @_reads(kind)
    def _read(to: Writer, result: Tensor, self: Any, other: Any) -> bool:
        both = to.knows(self) and to.knows(other) and _fits(self, other)
        return both and to.write(result, kind, *_wide_first(self, other))


for _kind in ("maximum", "minimum"):
    _extremes(_kind)


@_reads("cat")
def _cat(to: Writer, result: Tensor, tensors: Any, dim: int) -> bool:
    return dim % 4 == 1 and all(map(to.knows, tensors)) and to.write(result, "concat", *tensors)


@_reads("repeat")
def _repeat(to: Writer, result: Tensor, self: Tensor, repeats: Any) -> bool:
    times = len(repeats) == 4 and repeats[0] == repeats[2] == repeats[3] == 1 and repeats[1]
    return bool(times) and to.write(result, "concat", *[self] * times)


@_reads("index_select")
def _index_select(to: Writer, result: Tensor, self: Tensor, dim: int, index: Tensor) -> bool:
    return dim % 4 == 1 and not to.knows(index) and to.write(result, "gather", self, index=index)


@_reads("slice")
def _slice(to: Writer, result: Tensor, self: Tensor, dim: int, start: Any, end: Any, step: int) -> bool:
    if result.shape == self.shape:
        return to.is_same(result, self)
    index = torch.arange(self.shape[1])[start:end:step] if dim % 4 == 1 else None
    return index is not None and to.write(result, "gather", self, index=index)


@_reads("split", "split_with_sizes", "chunk")
def _split(to: Writer, result: Any, self: Tensor, dim: int, **_: Any) -> bool:
    index = torch.arange(self.shape[1]).split([one.shape[1] for one in result]) if dim % 4 == 1 else ()
    return bool(index) and all(to.write(one, "gather", self, index=part) for one, part in zip(result, index))


@_reads("pixel_shuffle")
def _shuffle(to: Writer, result: Tensor, self: Tensor, upscale_factor: int) -> bool:
    return to.write(result, "shuffle", self, factor=upscale_factor)


@_reads("pixel_unshuffle")
def _unshuffle(to: Writer, result: Tensor, self: Tensor, downscale_factor: int) -> bool:
    return to.write(result, "unshuffle", self, factor=downscale_factor)


def _resizes(mode: str) -> None:
    @_reads(f"upsample_{mode}2d")
    def _read(
        to: Writer, result: Tensor, self: Tensor, scales_h: Any, scales_w: Any, align_corners: bool = False, **_: Any
    ) -> bool:
        factor = tuple(new / old for new, old in zip(result.shape[2:], self.shape[2:]))
        as_sizes = (scales_h or factor[0], scales_w or factor[1]) == factor
        return as_sizes and to.write(result, "resize", self, factor=factor, mode=mode, align_corners=align_corners)


for _mode in ("nearest", "bilinear", "bicubic"):
    _resizes(_mode)


@_reads("mean")
def _mean(to: Writer, result: Tensor, self: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> bool:
    spatial = dim is not None and sorted(axis % 4 for axis in dim) == [2, 3]
    return spatial and keepdim and to.write(result, "mean", self)


@_reads("avg_pool2d")
def _average(
    to: Writer, result: Tensor, self: Tensor, kernel_size: Any, stride: Any, padding: Any, **others: Any
) -> bool:
    if others["ceil_mode"] or others["divisor_override"]:
        return False
    kernel = _pair(kernel_size)
    pooling = {"kernel": kernel, "stride": _pair(stride or kernel), "padding": _pair(padding)}
    return to.write(result, "average", self, **pooling, count_include_pad=others["count_include_pad"])


@_reads("max_pool2d_with_indices")
def _largest(to: Writer, result: Any, self: Tensor, kernel_size: Any, stride: Any, padding: Any, **others: Any) -> bool:
    if others["ceil_mode"] or _pair(others["dilation"]) != (1, 1):
        return False
    kernel = _pair(kernel_size)
    return to.write(result[0], "largest", self, kernel=kernel, stride=_pair(stride or kernel), padding=_pair(padding))


def _affine(to: Writer, result: Tensor, image: Tensor, scale: Any, shift: Any) -> bool:
    """scale * image + shift, of numbers or of tensors with a number per channel"""
    scales, shifts = _per_channel(scale, image), _per_channel(shift, image)
    if scales is None or shifts is None or result.shape != image.shape:
        return False
    return to.write(result, "affine", image, scale=scales, shift=shifts)


def _scaled(to: Writer, image: Tensor, factor: float) -> Tensor:
    """A step of its own before the one that is read."""
    result = image * factor
    _affine(to, result, image, factor, 0.0)
    return result


def _per_channel(numbers: Any, image: Tensor) -> Tensor | None:
    """(C,), or nothing if they are not one for each channel of an image (N, C, H, W)."""
    numbers = torch.as_tensor(numbers, dtype=image.dtype)
    channels = image.shape[1]
    wanted = (1,) * max(4 - numbers.dim(), 0) + tuple(numbers.shape)
    if wanted not in ((1, 1, 1, 1), (1, channels, 1, 1)):
        return None
    return numbers.reshape(-1).expand(channels).clone()


def _fits(one: Tensor, other: Tensor) -> bool:
    """Whether the smaller is an image too, of the same size, one pixel or one channel."""
    small, wide = sorted((one, other), key=torch.numel)
    channels, pixels = wide.shape[1:2], wide.shape[2:]
    fit = small.shape[1:2] in (channels, (1,)) and small.shape[2:] in (pixels, (1, 1))
    return one.dim() == other.dim() == 4 and len(one) == len(other) and fit


def _wide_first(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return (one, other) if one.numel() >= other.numel() else (other, one)


def _pair(numbers: Any) -> tuple[int, int]:
    """Of a list with one number or two."""
    numbers = list(numbers)
    return (numbers[0], numbers[-1])
