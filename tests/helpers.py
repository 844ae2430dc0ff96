"""Comparisons that can fail, numbers that show mistakes, and a convolution written from its definition."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from reparam import ConvSpec, blocks, create_model
from reparam.bn._norm import norms

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
PAPERS = [name for name, kind in vars(blocks).items() if kind in blocks.ConvBlock.__subclasses__()]
"""Names of the papers' blocks."""
_NUMPY_MODE = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def relative_error(a: Tensor, b: Tensor, scale: float | None = None) -> float:
    """max|a - b| / max|b|, in float64; over `scale` instead if a and b are parts of something larger."""
    if not a.numel():
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max()) / max(float(b.abs().max()) if scale is None else scale, 1e-30)


def assert_close(
    a: Tensor, b: Tensor, tolerance: float | None = None, what: str = "", scale: float | None = None
) -> None:
    """Fails, with the figures, if two tensors differ in shape, dtype or by more than the tolerance of their dtype.

    The error is relative to max|b|, or to `scale` where a and b are parts of something larger.
    """
    __tracebackhide__ = True
    assert a.shape == b.shape, f"{what}: shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{what}: dtypes differ: {a.dtype} and {b.dtype}"
    assert bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all()), f"{what}: a value is not finite"
    tolerance = TOLERANCE[a.dtype] if tolerance is None else tolerance
    error = relative_error(a, b, scale)
    assert error <= tolerance, f"{what}: relative error {error:.2e} exceeds {tolerance:.0e} at shape {tuple(a.shape)}"


def assert_close_everywhere(a: Tensor, b: Tensor, ring: int = 1, tolerance: float | None = None) -> None:
    """Compares (N, C, *size) outputs on the outer `ring` pixels and inside, and says which of them is wrong."""
    __tracebackhide__ = True
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    inside = torch.zeros(a.shape[2:], dtype=torch.bool)
    inside[tuple(slice(ring, max(size - ring, ring)) for size in a.shape[2:])] = True
    scale = float(b.detach().abs().max())
    assert_close(a[..., ~inside], b[..., ~inside], tolerance, "border", scale)
    assert_close(a[..., inside], b[..., inside], tolerance, "interior", scale)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Gives every parameter and statistic a value at which mistakes show: both signs, small variances, no zeros."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(uniform(parameter, -1.0, 1.0))
        for _, bn in norms(module):
            bn.running_mean.copy_(uniform(bn.running_mean, -2.0, 2.0))
            bn.running_var.copy_(uniform(bn.running_var, 0.0, 1.4).pow(4) + 1e-4)
            bn.num_batches_tracked.fill_(1)
            if bn.weight is not None:
                sign = torch.where(uniform(bn.weight, 0, 1) < 0.4, -1.0, 1.0)
                bn.weight.copy_(sign * uniform(bn.weight, 0.3, 1.5))
    return module


def image(spec: ConvSpec, seed: int, size: tuple[int, ...], batch: int = 2, dtype=torch.float64) -> Tensor:
    """A random input whose borders are larger than its inside, each side differently."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, spec.in_channels, *size), generator=generator, dtype=torch.float64)
    for axis in range(2, x.dim()):
        x.select(axis, 0).mul_(3.0).add_(1.0)
        x.select(axis, -1).mul_(-2.0).sub_(2.0)
    return x.to(dtype)


def slow_conv(x: Tensor, weight: Tensor, bias: Tensor, spec: ConvSpec) -> Tensor:
    """The convolution by its definition: numpy padding, a loop over taps, groups and axes. No torch convolution."""
    array, w = x.detach().double().numpy(), weight.detach().double().numpy()
    array = np.pad(array, [(0, 0), (0, 0), *spec.pads], mode=_NUMPY_MODE[spec.padding_mode])
    reach = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel_size)]
    size = [(n - r - 1) // s + 1 for n, r, s in zip(array.shape[2:], reach, spec.stride)]
    outputs, inputs = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    y = np.zeros((array.shape[0], spec.out_channels, *size))
    for taps in itertools.product(*map(range, spec.kernel_size)):
        window = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in zip(taps, spec.dilation, spec.stride, size)
        )
        for group in range(spec.groups):
            out = slice(group * outputs, (group + 1) * outputs)
            seen = array[(slice(None), slice(group * inputs, (group + 1) * inputs), *window)]
            y[:, out] += np.einsum("oi,ni...->no...", w[(out, slice(None), *taps)], seen)
    y += bias.detach().double().numpy().reshape(-1, *(1,) * spec.ndim) * spec.bias
    return torch.from_numpy(y)


def made(name: str, **options) -> nn.Module:
    """A network as in the middle of its training, with outputs of a usual size, in eval mode."""
    torch.manual_seed(0)
    net = create_model(name, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        net(torch.rand(4, net.colors, 16, 16))
    return net.eval()


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of all parameters, of a loss that tells the numbers of an output apart."""
    net.zero_grad()
    y = net(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters())]


def same(a: list[Tensor], b: list[Tensor]) -> None:
    """Each relative to the largest of all: some gradients are sums that cancel."""
    assert len(a) == len(b)
    scale = max(float(tensor.detach().abs().max()) for tensor in b)
    for one, other in zip(a, b):
        assert_close(one, other, scale=scale)
