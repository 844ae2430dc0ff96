"""The laws of the algebra, each against a convolution written from its definition."""

import pytest
import torch
from helpers import assert_close, slow_conv
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from reparam import ConvSpec, Kernel, SpecError
from reparam.algebra import _kernels as kernels


def random_kernel(outputs, inputs, size, groups, seed) -> Kernel:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((outputs, inputs // groups, *size), generator=generator, dtype=torch.float64)
    return Kernel(weight, torch.randn(outputs, generator=generator, dtype=torch.float64))


def valid(x, kernel, groups, dilation=1):
    """A valid convolution by the definition."""
    weight = kernel.weight
    spec = ConvSpec(x.shape[1], weight.shape[0], kernel.size, 1, 0, dilation, groups, ndim=weight.dim() - 2)
    return slow_conv(x, *kernel, spec)


@st.composite
def sizes(draw, ndim):
    return tuple(draw(st.integers(1, 4 if ndim < 3 else 2)) for _ in range(ndim))


@given(st.data(), seeds)
def test_compose_is_one_convolution_after_the_other(data, seed):
    ndim = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 2, 3]))
    k1, k2 = data.draw(sizes(ndim)), data.draw(sizes(ndim))
    dilation = tuple(data.draw(st.sampled_from([1, 2])) for _ in range(ndim))
    first = random_kernel(2 * groups, 3 * groups, k1, groups, seed)
    second = random_kernel(3 * groups, 2 * groups, k2, groups, seed + 1)
    both = kernels.compose(first, second, groups, dilation)
    x = torch.randn(2, 3 * groups, *(a + d * (b - 1) + 1 for a, b, d in zip(k1, k2, dilation))).double()
    assert_close(valid(x, both, groups), valid(valid(x, first, groups), second, groups, dilation))


@given(seeds, st.sampled_from([(6, 3), (6, 2), (6, 1), (4, 2), (3, 1), (2, 2)]))
def test_regroup_is_the_same_convolution(seed, groups):
    fine, coarse = groups
    kernel = random_kernel(2 * fine, 3 * fine, (2, 3), fine, seed)
    x = torch.randn(2, 3 * fine, 4, 5).double()
    regrouped = kernels.regroup(kernel, fine, coarse)
    assert regrouped.weight.shape[1] == 3 * fine // coarse
    assert_close(valid(x, regrouped, coarse), valid(x, kernel, fine))


@given(seeds, st.sampled_from([(6, 3), (6, 2), (6, 1), (4, 2), (3, 1), (2, 2)]))
def test_gathered_is_a_point_after_groups(seed, groups):
    fine, coarse = groups
    first, point = (
        random_kernel(2 * fine, 3 * fine, (2, 3), fine, seed),
        random_kernel(4 * coarse, 2 * fine, (1, 1), coarse, 1),
    )
    x = torch.randn(2, 3 * fine, 4, 5).double()
    first, point = (Kernel(kernel.weight, torch.zeros_like(kernel.bias)) for kernel in (first, point))
    weight = kernels.gathered(first.weight, point.weight, fine, coarse)
    y = valid(x, Kernel(weight, point.bias), coarse)
    assert_close(y, valid(valid(x, first, fine), point, coarse))


@given(st.data(), seeds)
def test_embed_reads_the_same_pixels(data, seed):
    small = data.draw(sizes(2))
    big = tuple(k + data.draw(st.integers(0, 3)) for k in small)
    kernel = random_kernel(2, 3, small, 1, seed)
    x = torch.randn(2, 3, 9, 8).double()
    spec = ConvSpec(3, 2, big, 1, 0)
    pads = tuple((max(low, 0), max(high, 0)) for low, high in spec.pads_for(small))
    assert pads == ((0, 0), (0, 0))  # a smaller kernel on an unpadded input only crops
    rows, cols = (slice(-low, x.shape[2 + i] + high) for i, (low, high) in enumerate(spec.pads_for(small)))
    assert_close(slow_conv(x, *kernels.embed(kernel, big), spec), valid(x[:, :, rows, cols], kernel, 1))


def test_embed_refuses_to_cut():
    with pytest.raises(SpecError, match=r"\(3, 3\) taps does not fit into kernel_size=\(3, 1\)"):
        kernels.embed(random_kernel(1, 1, (3, 3), 1, 0), (3, 1))


@given(seeds)
def test_add_sums_kernels_of_different_sizes(seed):
    a, b = random_kernel(2, 3, (3, 1), 1, seed), random_kernel(2, 3, (1, 5), 1, seed + 1)
    x = torch.randn(1, 3, 8, 9).double()
    total = kernels.add(a, b)
    assert total.size == (3, 5)
    assert_close(valid(x, total, 1), valid(x[:, :, :, 2:-2], a, 1) + valid(x[:, :, 1:-1], b, 1))


@given(seeds)
def test_affine_scales_and_shifts(seed):
    kernel = random_kernel(4, 2, (3,), 2, seed)
    scale, shift = torch.randn(2, 4).double()
    x = torch.randn(2, 4, 6).double()
    expected = valid(x, kernel, 2) * scale[:, None] + shift[:, None]
    assert_close(valid(x, kernels.affine(kernel, scale, shift), 2), expected)


@given(seeds, st.sampled_from([1, 2]))
def test_affine_before_is_taken_into_the_kernel(seed, groups):
    kernel = random_kernel(4, 6, (2, 3), groups, seed)
    scale, shift = torch.randn(2, 6).double()
    x = torch.randn(2, 6, 4, 5).double()
    expected = valid(x * scale[:, None, None] + shift[:, None, None], kernel, groups)
    assert_close(valid(x, kernels.affine_before(scale, shift, kernel, groups), groups), expected)


@given(seeds, st.sampled_from([(2, 1), (1, 3), (2, 3)]))
def test_dilate_spreads_the_taps(seed, factors):
    kernel = random_kernel(2, 2, (2, 3), 1, seed)
    x = torch.randn(1, 2, 7, 9).double()
    assert_close(valid(x, kernels.dilate(kernel, factors), 1), valid(x, kernel, 1, factors))


@given(seeds, st.sampled_from([((2, 3), (1, 1)), ((1, 1), (2, 3))]), st.sampled_from([1, 2]))
def test_spread_is_one_filter_per_channel_afterwards(seed, both, groups):
    first, depthwise = random_kernel(4, 6, both[0], groups, seed), random_kernel(4, 4, both[1], 4, seed + 1)
    x = torch.randn(2, 6, 4, 5).double()
    expected = valid(valid(x, first, groups), depthwise, 4)
    assert_close(valid(x, kernels.compose_depthwise(first, depthwise), groups), expected)


def point(kernel: Kernel) -> Kernel:
    """One tap of it."""
    return Kernel(kernel.weight[..., :1, :1], kernel.bias)


def after(kernel: Kernel) -> Kernel:
    """One of 2 groups that takes what `kernel` gives, and has as many channels."""
    return Kernel(kernel.weight[:, :1].repeat(1, 3, 1, 1), kernel.bias)


OPERATIONS = {  # of a kernel of 4 to 6 channels in 2 groups, and of a scale and a shift in higher precision
    "identity": lambda a, *_: kernels.identity(4, 2, 2, a.weight),
    "embed": lambda a, *_: kernels.embed(a, (4, 3)),
    "add": lambda a, *_: kernels.add(a, kernels.embed(a, (3, 3))),
    "affine": lambda a, scale, shift: kernels.affine(a, scale, shift),
    "affine_before": lambda a, scale, shift: kernels.affine_before(scale[:4], shift[:4], a, 2),
    "dilate": lambda a, *_: kernels.dilate(a, (2, 1)),
    "regroup": lambda a, *_: kernels.regroup(a, 2, 1),
    "compose": lambda a, *_: kernels.compose(a, after(a), 2, (2, 1)),
    "compose, 1x1 last": lambda a, *_: kernels.compose(a, point(after(a)), 2, (1, 1)),
    "compose, 1x1 first": lambda a, *_: kernels.compose(point(a), after(a), 2, (2, 1)),
    "compose_depthwise": lambda a, *_: kernels.compose_depthwise(a, point(Kernel(a.weight[:, :1], a.bias))),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_dtype_and_device(name, dtype, device):
    kernel = random_kernel(6, 4, (2, 3), 2, 0)
    kernel = Kernel(*(tensor.to(device, dtype) for tensor in kernel))
    scale, shift = torch.ones(2, 6, dtype=torch.float64, device=device)
    for tensor in OPERATIONS[name](kernel, scale, shift):
        assert (tensor.dtype, tensor.device.type) == (dtype, device)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "identity"])
def test_every_operation_is_differentiable(name):
    weight, bias = random_kernel(6, 4, (2, 2), 2, 0)
    scale, shift = torch.randn(2, 6, dtype=torch.float64)

    def operation(weight, bias, scale, shift):
        return tuple(OPERATIONS[name](Kernel(weight, bias), scale, shift))

    inputs = [tensor.requires_grad_() for tensor in (weight, bias, scale, shift)]
    weight, bias = operation(*inputs)
    assert weight.requires_grad and bias.requires_grad
    assert torch.autograd.gradcheck(operation, inputs, fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_is_the_identity(groups):
    x = torch.randn(2, 4, 3, 5).double()
    assert_close(valid(x, kernels.identity(4, groups, 2, x), groups), x)
