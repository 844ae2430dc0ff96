"""Random programs of layers, sums and channels: as one convolution, or refused, never another function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor

from reparam.algebra._affine import add, after, balanced, concat, padded, pointwise, select, the_input, unshuffled
from reparam.algebra._linear import LinearOp, conv_op
from reparam.algebra._spec import pad
from reparam.errors import NotLinearError

C = 4
Value = tuple[Tensor, LinearOp]


class Program:
    """Applies what is drawn to a tensor and to a linear map alike."""

    def __init__(self, draw, seed: int) -> None:
        self.draw, self.random = draw, torch.Generator().manual_seed(seed)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def conv(self, value: Value) -> Value:
        x, op = value
        size = tuple(self.draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2))
        padding = tuple(self.draw(st.integers(0, 1)) for _ in range(2))
        stride, dilation = self.draw(st.sampled_from([1, 1, 2])), self.draw(st.sampled_from([1, 1, 2]))
        groups = self.draw(st.sampled_from([1, x.shape[1]]))
        outputs = x.shape[1] if groups > 1 else self.draw(st.integers(2, 4))
        weight = self.numbers(outputs, x.shape[1] // groups, *size)
        bias = self.numbers(outputs) if self.draw(st.booleans()) else None
        geometry = stride, padding, dilation, groups
        return F.conv2d(x, weight, bias, *geometry), after(op, conv_op(weight, bias, *geometry))

    def scale(self, value: Value) -> Value:
        x, op = value
        scale, shift = self.numbers(x.shape[1]), self.numbers(x.shape[1])
        return x * scale[:, None, None] + shift[:, None, None], after(op, pointwise(scale, shift))

    def pad(self, value: Value) -> Value:
        x, op = value
        low, high = self.draw(st.integers(-1, 2)), self.draw(st.integers(-1, 2))
        return F.pad(x, (low, high, 0, 1)), after(op, padded(((0, 1), (low, high)), "zeros", op.kernel.bias))

    def some(self, value: Value) -> Value:
        x, op = value
        start = self.draw(st.integers(0, x.shape[1] - 1))
        stop = self.draw(st.integers(start + 1, x.shape[1]))
        return x[:, start:stop], select(op, start, stop)

    def unshuffle(self, value: Value) -> Value:
        x, op = value
        return F.pixel_unshuffle(x, 2), unshuffled(op, 2)

    def run(self, x: Tensor, steps: int) -> Value:
        values: list[Value] = [(x, the_input(x.new_empty(0), C))]
        for _ in range(steps):
            kind = self.draw(st.sampled_from(["conv", "conv", "scale", "pad", "some", "add", "concat", "unshuffle"]))
            first = values[self.draw(st.integers(0, len(values) - 1))]
            other = values[self.draw(st.integers(0, len(values) - 1))]
            try:
                if kind == "add":
                    values.append((first[0] + other[0], add(first[1], other[1])))
                elif kind == "concat":
                    values.append((torch.cat([first[0], other[0]], 1), concat([first[1], other[1]])))
                else:
                    values.append(getattr(self, kind)(first))
            except (NotLinearError, RuntimeError):  # refused by the algebra, or by torch itself
                continue
        return values[-1]


def run(op: LinearOp, x: Tensor) -> Tensor:
    """What a linear map says that it does."""
    op = balanced(op)
    if op.reads:
        start, read = op.reads[0], op.kernel.weight.shape[1] * op.groups
        x, op = x[:, start : start + read], op._replace(reads=None)
    return op.apply(x, op.pads or None, op.padding_mode)


@given(st.data(), seeds, st.integers(1, 7))
def test_a_program_is_the_linear_map_that_is_made_of_it(data, seed, steps):
    program = Program(data.draw, seed)
    x = program.numbers(2, C, 12, 10)
    wanted, op = program.run(x, steps)
    if op.ndim:
        assert_close(run(op, x), wanted)
        assert op.shifts or not bool(op.kernel.bias.any())
    else:
        start = op.reads[0] if op.reads else 0
        part = (
            pad(x[:, start : start + op.outputs], op.pads, op.padding_mode)
            if op.pads
            else x[:, start:][:, : op.outputs]
        )
        assert_close(part * op.kernel.weight[:, :1, None] + op.kernel.bias[:, None, None], wanted)


def test_channels_do_not_change_places_where_axes_are_unknown():
    x = the_input(torch.empty(0), 4)
    with pytest.raises(NotLinearError, match="channels are reordered in a value whose number of axes is unknown"):
        concat([select(x, 2, 4), select(x, 0, 2)])
    with pytest.raises(NotLinearError, match="channels are reordered"):
        add(select(x, 2, 4), select(x, 0, 2))
