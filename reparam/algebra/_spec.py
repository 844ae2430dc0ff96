"""The geometry of a convolution: the one place that knows how padding, stride and dilation work."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpecError
from ._axes import CONV, CONVOLVE

Pads = tuple[tuple[int, int], ...]
"""Pixels added before and after, per spatial axis; a negative number crops."""

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def center(size: int) -> int:
    """Index of the tap that an identity uses in a kernel of this size: the middle, or the one before it."""
    return (size - 1) // 2


def pad(x: Tensor, pads: Pads, padding_mode: str = "zeros") -> Tensor:
    """Pad or crop the spatial axes of `x` (N, C, *size). Cropping comes after padding, so it works in every mode."""
    grow = [max(p, 0) for pair in reversed(pads) for p in pair]
    if any(grow):
        padded = F.pad(x, grow, mode="constant" if padding_mode == "zeros" else padding_mode)
        x = padded.to(x.dtype)  # under autocast, reflecting and replicating return float32
    for axis, (low, high) in enumerate(pads, start=x.dim() - len(pads)):
        if low < 0 or high < 0:
            start = max(-low, 0)
            x = x.narrow(axis, start, x.shape[axis] - start - max(-high, 0))
    return x


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    pads: Pads | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    """Convolve `x` after padding it by `pads`; without `pads`, a valid convolution."""
    padding: tuple[int, ...] = (0,) * (weight.dim() - 2)
    if pads is not None:
        if padding_mode == "zeros" and all(low == high >= 0 for low, high in pads):
            padding = tuple(low for low, _ in pads)
        else:
            x = pad(x, pads, padding_mode)
    function = CONVOLVE[weight.dim() - 2]
    return function(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _integer(value: Any) -> int | None:
    """An integer of any type (numpy's too) as a Python int; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _count(name: str, value: Any) -> int:
    count = _integer(value)
    if count is None or count < 1:
        raise SpecError(f"{name} must be a positive integer, but got {name}={value!r}")
    return count


def _tuple(name: str, value: int | Sequence[int], ndim: int, least: int) -> tuple[int, ...]:
    one = _integer(value)
    values = (one,) * ndim if one is not None else tuple(map(_integer, value)) if isinstance(value, Iterable) else ()
    if len(values) != ndim or not all(v is not None and v >= least for v in values):
        raise SpecError(f"{name} must be one integer >= {least}, or {ndim} of them, but got {name}={value!r}")
    return values  # type: ignore[return-value]  # none is None


def _padding(padding: int | Sequence[int] | str | None, total: tuple[int, ...], stride: tuple[int, ...]):
    """The user's padding in torch's form; `total` is the padding per axis that keeps the size at stride 1."""
    if padding == "valid":
        return (0,) * len(total)
    if padding is None or padding == "same":
        if all(t % 2 == 0 for t in total) and (padding is None or all(s == 1 for s in stride)):
            return tuple(t // 2 for t in total)
        if all(s == 1 for s in stride):
            return "same"
        asked = "padding=None (the size is kept at stride 1)" if padding is None else "padding='same'"
        raise SpecError(
            f"{asked} is not defined for stride={stride} with {total} pixels to split between two sides; "
            "pass padding as an integer"
        )
    if isinstance(padding, str):
        raise SpecError(f"padding must be an integer, a tuple, 'same', 'valid' or None, but got padding={padding!r}")
    return _tuple("padding", padding, len(total), 0)


@dataclass(frozen=True, init=False)
class ConvSpec:
    r"""The geometry of the convolution that a branch or a block equals.

    For every output channel o of group g and position q

    $$y[o, q] = b[o] + \sum_{i, t} W[o, i, t] \; \tilde x[gI + i,\; q s + t d]$$

    with $\tilde x$ the padded input, I = in_channels / groups, t a tap, s the stride and d the dilation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; None means `in_channels`.
        kernel_size: taps per axis.
        stride: step of the output grid, in pixels of the input.
        padding: pixels added on both sides, "same", "valid", or None for "the same size at stride 1".
        dilation: distance between two taps, in pixels.
        groups: number of independent channel groups.
        bias: whether the convolution has a bias. If not, a block removes the biases of its branches from the sum.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        ndim: number of spatial axes, 1, 2 or 3.

    Raises:
        SpecError: if an argument is out of range, or `groups` does not divide both channel counts.

    Example:
        >>> spec = ConvSpec(16, 32, 3, stride=2)
        >>> spec.padding == (1, 1)
        True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    padding_mode: str
    ndim: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        ndim: int = 2,
    ) -> None:
        if ndim not in CONV:
            raise SpecError(f"ndim must be 1, 2 or 3, but got ndim={ndim!r}")
        out_channels = in_channels if out_channels is None else out_channels
        groups, in_channels, out_channels = (
            _count(name, value)
            for name, value in (("groups", groups), ("in_channels", in_channels), ("out_channels", out_channels))
        )
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if count % groups:
                raise SpecError(f"{name}={count} must be divisible by groups={groups}")
        if padding_mode not in PADDING_MODES:
            raise SpecError(f"padding_mode must be one of {PADDING_MODES}, but got padding_mode={padding_mode!r}")
        size = _tuple("kernel_size", kernel_size, ndim, 1)
        step = _tuple("stride", stride, ndim, 1)
        apart = _tuple("dilation", dilation, ndim, 1)
        total = tuple(d * (k - 1) for d, k in zip(apart, size))
        values = (in_channels, out_channels, size, step, _padding(padding, total, step), apart, groups, bool(bias))
        for name, value in zip(self.__dataclass_fields__, (*values, padding_mode, ndim)):
            object.__setattr__(self, name, value)  # the dataclass is frozen for everybody else

    def replace(self, **changes: Any) -> ConvSpec:
        """Return a copy with some fields changed.

        Padding that means "the same size at stride 1" keeps this meaning for a new kernel size and dilation. Any other
        padding stays the same number of pixels.

        Args:
            **changes: fields by name, as the constructor takes them.

        Raises:
            SpecError: for a geometry that no convolution has; for "the same size at stride 1" with a stride and an odd
                number of pixels to split; and for a new `ndim` without new values for the fields that have one number
                per axis.

        Example:
            >>> ConvSpec(8).replace(kernel_size=5).padding, ConvSpec(8, padding=0).replace(kernel_size=5).padding
            ((2, 2), (0, 0))
        """
        if self.pads == self._usual_pads:
            changes = {"padding": None, **changes}
        return dataclass_replace(self, **changes)

    def unpadded(self, **changes: Any) -> ConvSpec:
        """The geometry of a convolution inside a branch: without padding, since the branch pads its input once."""
        return dataclass_replace(self, **{"padding": 0, "padding_mode": "zeros", **changes})

    def pointwise(self, **changes: Any) -> ConvSpec:
        """The geometry of an unpadded 1x1 convolution with stride 1."""
        return self.unpadded(**{"kernel_size": 1, "stride": 1, "dilation": 1, **changes})

    @property
    def pads(self) -> Pads:
        """Pixels added before and after, per axis."""
        return tuple((p, p) for p in self.padding) if isinstance(self.padding, tuple) else self._usual_pads

    @property
    def _usual_pads(self) -> Pads:
        """The pads that keep the size at stride 1; like torch's "same", an odd pixel goes to the end."""
        totals = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size))
        return tuple((total // 2, total - total // 2) for total in totals)

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the spatial size of the input."""
        return all(s == 1 for s in self.stride) and self.pads == self._usual_pads

    @property
    def parameters(self) -> int:
        """Number of parameters of the convolution, weight and bias."""
        return self.out_channels * (self.in_channels // self.groups * prod(self.kernel_size) + self.bias)

    def pads_for(self, kernel_size: tuple[int, ...]) -> Pads:
        """Pads for a smaller kernel with its center tap on this one's; negative if the input must be cropped."""
        pads = []
        for (low, high), big, small, d in zip(self.pads, self.kernel_size, kernel_size, self.dilation):
            before = center(big) - center(small)
            pads.append((low - before * d, high - (big - small - before) * d))
        return tuple(pads)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x in this geometry with the kernel (`weight`, `bias`); a spec with `bias=False` ignores `bias`."""
        return convolve(
            x,
            weight,
            bias if self.bias else None,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            pads=self.pads,
            padding_mode=self.padding_mode,
        )

    def build_conv(self, weight: Tensor, bias: Tensor) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Build the `nn.Conv` of this geometry from these tensors, uncopied; `bias=False` ignores `bias`."""
        conv = CONV[self.ndim](
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]  # a tuple of ndim integers, which mypy cannot know
            stride=self.stride,  # type: ignore[arg-type]  # likewise
            padding=self.padding,  # type: ignore[arg-type]  # likewise, or "same"
            dilation=self.dilation,  # type: ignore[arg-type]  # likewise
            groups=self.groups,
            bias=self.bias,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]  # one of PADDING_MODES
            device="meta",  # saves an initialization that is overwritten at once
        )
        conv.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
        if self.bias:
            conv.bias = nn.Parameter(bias, requires_grad=bias.requires_grad)
        return conv

    def new_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Build an `nn.Conv` of this geometry with torch's initialization, but a bias of zero.

        torch draws biases about as large as the outputs of a convolution, and branches add up theirs. The page on
        results has figures.
        """
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        conv = self.build_conv(torch.empty(shape, requires_grad=True), torch.empty(shape[0], requires_grad=True))
        conv.reset_parameters()
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def __str__(self) -> str:
        text = f"{self.in_channels} -> {self.out_channels}, {'x'.join(map(str, self.kernel_size))}"
        for name, value, usual in (
            ("stride", self.stride, (1,) * self.ndim),
            ("dilation", self.dilation, (1,) * self.ndim),
            ("groups", self.groups, 1),
            ("bias", self.bias, True),
            ("padding_mode", self.padding_mode, "zeros"),
        ):
            if value != usual:
                text += f", {name}={value}"
        return text if self.keeps_size else f"{text}, padding={self.padding}"
