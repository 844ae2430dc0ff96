"""Make a block compute a given convolution by changing one of its branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..algebra._kernels import Kernel
from ..algebra._spec import ConvSpec
from ..blocks._block import ReparamBlock
from ..bn._norm import BatchNorm, is_norm, norms
from ..branches import Branch
from ..branches._stages import ChannelScale
from ..errors import SpecError

_EXACT = 1e-14  # relative residual that float64 can reach
_STEPS = 200  # a few suffice with orthogonal 1x1 convolutions
_PASSES = 10


@torch.no_grad()
def absorb(block: ReparamBlock, target: Kernel) -> None:
    r"""Change a float64 block in eval mode so that its kernel is `target`.

    The kernel K is affine in the weight w of one k x k convolution and in one bias. These two get the smallest change
    that solves

    $$K(w) = K(w_0) + J (w - w_0) = K_{target},\qquad w = w_0 + J^\top (J J^\top)^{-1} (K_{target} - K(w_0)).$$

    Everything else keeps its random start and stays trainable, except that batch norms in the branch of w get scale 1
    and shift 0, and the 1x1 convolutions before and after w become orthogonal. This keeps w as large as the target.

    Args:
        block: any block with a branch that has a convolution with all taps of its spec.
        target: weight of shape (out, in / groups, *size), bias of shape (out,).

    Raises:
        SpecError: if no branch can represent every kernel. The block is then left half changed.
    """
    holder, conv = _holder(block)
    _make_plain(block, holder, conv)
    unknowns = [conv.weight, *_bias(block, holder)]
    wanted = torch.cat([target.weight.flatten(), target.bias if block.spec.bias else target.bias[:0]])

    def kernel() -> Tensor:
        weight, bias = block._full(block.kernel())
        return torch.cat([weight.flatten(), bias if block.spec.bias else bias[:0]])

    for _ in range(_PASSES):  # each pass corrects the rounding errors of the one before
        missing = wanted - kernel()
        if float(missing.abs().max()) <= _EXACT * max(float(wanted.abs().max()), float(conv.weight.abs().max())):
            return
        for unknown, change in zip(unknowns, _least_change(kernel, unknowns, missing)):
            unknown.add_(change)
    if not float((wanted - kernel()).abs().max()) <= 100 * _EXACT * float(conv.weight.abs().max()):
        raise SpecError(
            f"{type(block).__name__} ({block.spec}) cannot take the kernel: its path through {type(holder).__name__} "
            "is too narrow, or it has no bias to take the convolution's"
        )


def _make_plain(block: ReparamBlock, holder: Branch, conv: _ConvNd) -> None:
    """Make the layers around the convolution neutral: norms and scales become 1, 1x1 convolutions orthogonal."""
    for _, bn in norms(block):
        _forget(bn)
    for bn in [*(bn for _, bn in norms(holder)), *([] if block.norm is None else [block.norm])]:
        _neutralise(bn)
    for module in holder.modules():
        if isinstance(module, ChannelScale):
            module.scale.fill_(1.0)
        if isinstance(module, _ConvNd) and module is not conv and all(k == 1 for k in module.kernel_size):
            for rows in module.weight.chunk(module.groups):
                nn.init.orthogonal_(rows.flatten(1))


def _holder(block: ReparamBlock) -> tuple[Branch, _ConvNd]:
    """The first branch with a convolution that has all taps of the block, and that convolution."""
    spec = block.spec
    for branch in block.branches:
        for module in branch.modules():
            if isinstance(module, _ConvNd) and _is_full(module, spec):
                return branch, module  # type: ignore[return-value]  # all branches have this type
    raise SpecError(
        f"{type(block).__name__} ({spec}) has no convolution with all of its taps, so it cannot take every kernel"
    )


def _is_full(conv: _ConvNd, spec: ConvSpec) -> bool:
    taps = all(k == 1 or d == want for k, d, want in zip(conv.kernel_size, conv.dilation, spec.dilation))
    return tuple(conv.kernel_size) == spec.kernel_size and taps and conv.weight.requires_grad


def _bias(block: ReparamBlock, holder: Branch) -> list[Tensor]:
    """A bias that the kernel's bias depends on: after the sum, in the branch, or in another one; the last of each."""
    if not block.spec.bias:
        return []
    after = [] if block.norm is None else [block.norm]
    for modules in (after, *(list(branch.modules()) for branch in (holder, *block.branches))):
        for module in reversed(modules):
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter) and (isinstance(module, _ConvNd) or is_norm(module)):
                return [bias]
    return []


def _forget(bn: BatchNorm) -> None:
    """Set mean 0 and variance 1 and mark them as seen, since the block's function depends on them from now on."""
    if bn.running_mean is None or bn.running_var is None:
        raise SpecError(f"{type(bn).__name__} keeps no running statistics, so the block has no kernel")
    bn.running_mean.zero_()
    bn.running_var.fill_(1.0)
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.fill_(1)


def _neutralise(bn: BatchNorm) -> None:
    """Set scale 1 and shift 0, if the norm has an affine."""
    if bn.weight is not None:
        bn.weight.fill_(math.sqrt(1.0 + bn.eps))
    if bn.bias is not None:
        bn.bias.zero_()


@torch.enable_grad()
def _least_change(function: Callable[[], Tensor], unknowns: Sequence[Tensor], missing: Tensor) -> tuple[Tensor, ...]:
    """The smallest change of the unknowns that increases an affine function by `missing`.

    It runs conjugate gradients on J J^T, where J^T v is a gradient, and J u the gradient of a gradient.
    """
    value = function()
    dual = torch.zeros_like(missing, requires_grad=True)
    back = torch.autograd.grad(value, unknowns, dual, create_graph=True)  # J^T dual

    def transposed(v: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, unknowns, v, retain_graph=True)

    solution, residual, direction = torch.zeros_like(missing), missing, missing
    size = goal = missing.square().sum()
    for _ in range(_STEPS):
        if size <= 1e-30 * goal:
            break
        (product,) = torch.autograd.grad(back, dual, transposed(direction), retain_graph=True)
        step = size / (direction @ product)
        solution, residual = solution + step * direction, residual - step * product
        size, previous = residual.square().sum(), size
        direction = residual + (size / previous) * direction
    return transposed(solution)
