"""What every branch and every block must be: equal to one convolution, in every way a user may touch it."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable

import torch
from helpers import assert_close, assert_close_everywhere, slow_conv
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from reparam import Branch, FrozenStatsBN, freeze_bn_stats, unfreeze_bn_stats

READ = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
"""What code that was written for convolutions reads of them."""


def check_equals_its_convolution(branch: Branch, x: Tensor) -> None:
    """forward = conv with kernel() by the definition of a convolution = to_conv(), borders looked at separately."""
    y = branch(x)
    weight, bias = branch.kernel()
    ring = max(max(pair) for pair in branch.spec.pads) or 1
    assert_close_everywhere(y, slow_conv(x, weight, bias, branch.spec), ring)
    conv = branch.to_conv()
    assert (conv.bias is not None) == branch.spec.bias
    assert [getattr(branch, name) for name in READ] == [getattr(conv, name) for name in READ]
    assert_close_everywhere(y, conv(x), ring)


@torch.no_grad()
def check_is_affine(branch: Branch, x: Tensor) -> None:
    """f(2 x - 3 z) = 2 f(x) - 3 f(z) + 2 f(0)."""
    z = x.flip(0) * 0.5 + 1.0
    expected = 2 * branch(x) - 3 * branch(z) + 2 * branch(torch.zeros_like(x))
    assert_close(branch(2 * x - 3 * z), expected, 1e-11)


def check_gradients(branch: Branch, x: Tensor) -> None:
    """Gradients to the input and to every parameter are those of the convolution with kernel()."""

    def gradients(forward) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
        inputs = [leaf, *branch.parameters()]
        found = torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
        return list(found)

    direct = gradients(branch)
    through_kernel = gradients(lambda leaf: branch.spec.convolve(leaf, *branch.kernel()))
    scale = max(float(g.abs().max()) for g in through_kernel)
    for ours, theirs in zip(direct, through_kernel):
        assert float((ours - theirs).abs().max()) <= 1e-11 * scale, "a gradient differs from the one through kernel()"


@torch.no_grad()
def check_copies(branch: Branch, fresh: Branch, x: Tensor) -> None:
    """deepcopy, pickle and a state-dict round trip into a fresh module give the same function."""
    y = branch(x)
    fresh.load_state_dict(branch.state_dict(), strict=True)
    for copied in (copy.deepcopy(branch), pickle.loads(pickle.dumps(branch)), fresh):
        assert torch.equal(copied(x), y)


def check_frozen(branch: Branch, fresh: Branch, x: Tensor) -> None:
    """Frozen, it counts as what it was, and a fresh module that loads its state dict is frozen, in train mode too."""
    norms = [(bn, type(bn)) for bn in branch.modules() if isinstance(bn, _BatchNorm)]
    y, keys = branch(x), list(branch.state_dict())
    freeze_bn_stats(branch)
    assert all(isinstance(bn, kind) and isinstance(bn, FrozenStatsBN) for bn, kind in norms)
    file = io.BytesIO()
    torch.save(branch.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for copied in (branch, copy.deepcopy(branch), pickle.loads(pickle.dumps(branch)), fresh):
        assert_close(copied.train()(x), y)
        assert list(copied.state_dict()) == keys
    unfreeze_bn_stats(branch)
    assert [type(bn) for bn, _ in norms] == [kind for _, kind in norms]


@torch.no_grad()
def without_cancellation(branch: Branch) -> Branch:
    """A copy in which every term of every sum is positive: its output bounds all that is added up on the way."""
    positive = copy.deepcopy(branch)
    for parameter in positive.parameters():
        parameter.abs_()
    for name, buffer in positive.named_buffers():
        if name.endswith("mask"):
            buffer.abs_()
        if name.endswith("running_mean"):
            buffer.abs_().neg_()  # it is subtracted
    return positive


@torch.no_grad()
def check_dtype(branch: Branch, x: Tensor, dtype: torch.dtype) -> None:
    """forward and to_conv keep a dtype, and stay near the float64 function."""
    exact = branch(x)
    lower = copy.deepcopy(branch).to(dtype)
    conv = lower.to_conv()
    assert {p.dtype for p in conv.parameters()} == {dtype}
    with_bias = branch.spec.replace(bias=True)  # also where the bias is taken off in the end
    scale = float(slow_conv(x.abs(), *without_cancellation(branch).kernel(), with_bias).max())
    step = torch.finfo(dtype).eps
    for y in (lower(x.to(dtype)), conv(x.to(dtype))):
        assert y.dtype == dtype
        error = float((y.double() - exact).abs().max())
        assert error <= 10 * step * scale, f"error {error:.1e} at {dtype} exceeds 10 rounding steps of {scale:.1e}"


@torch.no_grad()
def check_built_on_meta(branch: Branch, build: Callable[[], Branch], x: Tensor) -> None:
    """Built on meta, then loaded by assignment, or into memory that held anything: the same function, kernel too."""
    y, state = branch(x), branch.state_dict()
    with torch.device("meta"):
        assigned, emptied = build(), build()
    assigned.load_state_dict(copy.deepcopy(state), strict=True, assign=True)
    emptied.to_empty(device="cpu").to(x.dtype)
    for tensor in [*emptied.parameters(), *emptied.buffers()]:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    emptied.load_state_dict(state, strict=True)
    for loaded in (assigned, emptied):
        assert torch.equal(loaded.train(branch.training)(x), y)
        assert torch.equal(loaded.to_conv()(x), branch.to_conv()(x))
        assert {t.dtype for t in loaded.buffers() if t.is_floating_point()} <= {x.dtype}


def check_reset(branch: Branch, build: Callable[[], Branch], seed: int) -> None:
    """A seed gives the same start to a branch as when it is built, of which every tensor stays the object it is."""
    torch.manual_seed(seed)
    expected, drawn = build(), torch.rand(1)
    ours = dict(itertools.chain(branch.named_parameters(), branch.named_buffers()))
    torch.manual_seed(seed)
    branch.reset_parameters()
    assert torch.equal(torch.rand(1), drawn), "another number of draws than when it is built"
    now = dict(itertools.chain(branch.named_parameters(), branch.named_buffers()))
    for name, start in itertools.chain(expected.named_parameters(), expected.named_buffers()):
        assert now[name] is ours[name] and torch.equal(now[name], start.to(now[name].dtype)), name
    assert now.keys() == ours.keys()


def check_autocast(branch: Branch, x: Tensor) -> None:
    """Under autocast the output has the dtype that a convolution's has, and parameters get gradients of their own."""
    x = x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = branch.spec.new_conv()(x), branch(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    assert y.shape == expected.shape
    y.float().sum().backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in branch.parameters()
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(branch).double()(x.detach().double()).dtype == torch.float64


def check_meta(branch: Branch, x: Tensor) -> None:
    """Runs on the meta device, where only shapes exist."""
    on_meta = copy.deepcopy(branch).to("meta")
    assert on_meta(x.to("meta")).shape == branch(x).shape
    assert on_meta.to_conv().weight.is_meta
