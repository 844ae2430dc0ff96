"""Chains of valid convolutions as one, and torch's modules as such convolutions."""

import pytest
import torch
from helpers import assert_close, slow_conv
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import nn

from reparam import ConvSpec, Kernel
from reparam.algebra._composition import fit, place, then
from reparam.algebra._linear import LinearOp, identity_op, linear_op

POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: torch.Tensor, op: LinearOp) -> torch.Tensor:
    weight, bias = op.kernel
    size = tuple(weight.shape[2:])
    spec = ConvSpec(x.shape[1], weight.shape[0], size, op.stride, 0, op.dilation, op.groups, ndim=len(size))
    return slow_conv(x, weight, bias, spec)


@st.composite
def chains(draw) -> tuple[LinearOp, LinearOp, tuple[int, ...]]:
    """Two operations that fit one after the other, in every geometry, and the channels and the size of an input."""
    ndim, seed = draw(st.integers(1, 2)), draw(seeds)
    small = st.tuples(*[st.integers(1, 3)] * ndim)
    (k1, d1, s1), (k2, d2, s2) = ((draw(small), draw(small), draw(small)) for _ in range(2))
    g1, g2, wide = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2])), draw(st.integers(1, 2))
    middle, inputs = g1 * g2 * wide, g1 * 2
    depthwise = draw(st.booleans())
    g2, outputs = (middle, middle) if depthwise else (g2, g2 * 3)
    first = Kernel(random(middle, inputs // g1, *k1, seed=seed), random(middle, seed=seed + 1))
    second = Kernel(random(outputs, middle // g2, *k2, seed=seed + 2), random(outputs, seed=seed + 3))
    least = (d * (k - 1) + 1 + s * e * (n - 1) for k, d, s, n, e in zip(k1, d1, s1, k2, d2))
    size = (inputs, *(pixels + draw(st.integers(0, 3)) for pixels in least))
    return LinearOp(first, s1, d1, g1), LinearOp(second, s2, d2, g2), size


@given(chains(), seeds)
def test_then_is_one_after_the_other(chain, seed):
    first, second, size = chain
    x = random(2, *size, seed=seed)
    expected = by_definition(by_definition(x, first), second)
    both = then(first, second)
    assert_close(by_definition(x, both), expected)
    assert_close(both.apply(x), expected)
    assert first.groups % both.groups == 0


@given(chains(), seeds)
def test_nothing_before_or_after_changes_nothing(chain, seed):
    op, _, size = chain
    x = random(1, *size, seed=seed)
    channels, ndim = op.kernel.weight.shape[0], len(size) - 1
    for same in (then(identity_op(size[0], ndim, x), op), then(op, identity_op(channels, ndim, x))):
        assert_close(same.apply(x), op.apply(x))
        assert same.groups == op.groups, "an identity is of as many groups as need be"


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"stride": 2}, {"divisor_override": 5}])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_an_average_pool_is_a_convolution(ndim, options):
    if ndim == 1:  # torch's has no divisor
        options = {name: value for name, value in options.items() if name == "stride"}
    pool = POOLS[ndim]((2, 3, 2)[:ndim], **options)
    x = random(2, 3, *(7, 8, 6)[:ndim], seed=0)
    op = linear_op(pool, 3, x)
    assert op.kernel.weight.dtype == torch.float64
    assert_close(by_definition(x, op), pool(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_itself(bias):
    conv = nn.Conv2d(4, 6, (3, 2), 2, dilation=(1, 2), groups=2, bias=bias).double()
    x = random(2, 4, 7, 8, seed=0)
    assert_close(by_definition(x, linear_op(conv, 4, x)), conv(x))


@given(st.data(), seeds)
def test_fit_writes_the_same_function_in_the_geometry_of_a_spec(data, seed):
    fewer, taps, d = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    apart = data.draw(st.integers(1, 2))  # taps lie so many times farther apart than the spec's
    groups = data.draw(st.sampled_from([1, 2]))
    size = apart * (taps - 1) + fewer
    spec = ConvSpec(4, 4, (size, 1), data.draw(st.integers(1, 2)), 0, (d, 1), groups)
    kernel = Kernel(random(4, 1, taps, 1, seed=seed), random(4, seed=seed + 1))
    op = LinearOp(kernel, spec.stride, (d * apart, 1), 4)
    x = random(2, 4, d * (size - 1) + 3, 4, seed=seed + 2)
    own = fit(op, spec, embedded=False)
    assert own.size == (apart * (taps - 1) + 1, 1) and fit(op, spec).size == spec.kernel_size
    (low, high), _ = spec.pads_for(own.size)
    cropped = x[:, :, -low : x.shape[2] + high]
    assert_close(slow_conv(x, *fit(op, spec), spec), by_definition(cropped, op))


@given(st.data(), seeds)
def test_place_reads_the_patch_of_the_output(data, seed):
    """A 3 x 1 part of a chain whose rest crops `low` rows before and `high` after, under the patch of the whole."""
    low, high, columns = (data.draw(st.integers(0, 2)) for _ in range(3))
    spec = ConvSpec(3, 4, (3 + low + high, 1 + 2 * columns), 1, 0)
    kernel = Kernel(random(4, 1, 3, 1, seed=seed), random(4, seed=seed + 1))
    kernel = Kernel(kernel.weight[:3], kernel.bias[:3])
    op = LinearOp(kernel, (1, 1), (1, 1), 3)
    x = random(2, 3, spec.kernel_size[0] + 2, spec.kernel_size[1] + 3, seed=seed + 2)
    inner = by_definition(x, op)
    expected = inner[:, :, low : inner.shape[2] - high, columns : inner.shape[3] - columns]
    placed = place(op, ((-low, -high), (0, 0)), spec)
    assert placed.size == spec.kernel_size
    assert_close(slow_conv(x, *placed, spec.replace(out_channels=3)), expected)
