"""Two convolutions, one of them 1x1, through a wider or narrower middle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._composition import fit, then
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp, linear_op
from ..algebra._spec import ConvSpec, pad
from ..bn._norm import (
    TORCH_NORMS,
    NormChoice,
    batch_moments,
    batch_scale_shift,
    fused_batch_norm,
    make_norm,
    side_by_side,
    stored_scale_shift,
    uses_batch_stats,
)
from ..errors import SpecError
from ..folding import cost
from ._base import Branch, ScaleShift
from ._chain import ChainBranch


class ExpandSqueezeBranch(ChainBranch):
    r"""A k x k and a 1x1 convolution in either order, usually through a wider middle: y = W_2 * N(W_1 * x + b_1) + b_2.

    N is a batch norm or nothing. With order "kxk-1x1" (RepSR, SESR), W_1 has the taps of the spec and W_2 has one; with
    "1x1-kxk" (ECBSR, DBB), the reverse. The middle has `expansion * out_channels` channels.

    Source: kxk-1x1: Wang, Dong, Shan, "RepSR", ACM MM 2022, arXiv 2205.05671 (with BN), and K. Bhardwaj et al.,
    "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, arXiv 2103.09404 (without).
    1x1-kxk: X. Zhang, H. Zeng, L. Zhang, "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile
    Devices", ACM MM 2021. They pad the output of the 1x1 with its bias; padding the input first, as here, is
    equivalent.

    Args:
        spec: the geometry; with groups, both convolutions are grouped.
        expansion: channels of the middle per output channel, a positive number.
        hidden_channels: channels of the middle, instead of `expansion`.
        order: "kxk-1x1" or "1x1-kxk".
        bn: whether there is a batch norm between the two, or a callable that makes one from the channel count.
        bias: whether the two convolutions have biases.
        gain: factor on the initial weights of the second convolution. With a factor below 1 the branch starts small,
            so a block with an identity starts near the identity.
        bn_weight: initial weight of the batch norm; a small one has the same effect.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for an unknown `order`, or if the channels of the middle are zero or not divisible by the groups.

    Example:
        >>> branch = ExpandSqueezeBranch(ConvSpec(16), bn=True)
        >>> branch.expand.weight.shape == (32, 16, 3, 3) and branch.squeeze.weight.shape == (16, 32, 1, 1)
        True
    """

    def __init__(
        self,
        spec: ConvSpec,
        *,
        expansion: float = 2.0,
        hidden_channels: int | None = None,
        order: Literal["kxk-1x1", "1x1-kxk"] = "kxk-1x1",
        bn: NormChoice = False,
        bias: bool = True,
        gain: float = 1.0,
        bn_weight: float = 1.0,
    ) -> None:
        super().__init__(spec)
        if order not in ("kxk-1x1", "1x1-kxk"):
            raise SpecError(f"order must be 'kxk-1x1' or '1x1-kxk', but got order={order!r}")
        hidden = int(round(expansion * spec.out_channels, 6)) if hidden_channels is None else hidden_channels
        if hidden < 1:
            raise SpecError(
                f"the middle of an expand-squeeze branch needs at least one channel, but got expansion={expansion}, "
                f"hidden_channels={hidden_channels} for out_channels={spec.out_channels}"
            )
        if hidden % spec.groups:
            raise SpecError(
                f"the middle of an expand-squeeze branch has {hidden} channels (expansion={expansion}, hidden_channels="
                f"{hidden_channels}, out_channels={spec.out_channels}), which groups={spec.groups} does not divide"
            )
        first, second = (spec.unpadded, spec.pointwise) if order == "kxk-1x1" else (spec.pointwise, spec.unpadded)
        self.expand = first(out_channels=hidden, bias=bias).new_conv()
        self.norm = make_norm(bn, hidden, spec.ndim)
        self.squeeze = second(in_channels=hidden, bias=bias).new_conv()
        with torch.no_grad():
            self.squeeze.weight.mul_(gain)
            if self.norm is not None and self.norm.affine:
                self.norm.weight.fill_(bn_weight)
        self.check()

    def stages(self) -> list[nn.Module]:
        return [self.expand, self.squeeze] if self.norm is None else [self.expand, self.norm, self.squeeze]


class ExpandSqueezeStack:
    """Expand-squeeze branches of the same shape, computed as one: first convolutions concatenated, second ones summed.

    Parameters and statistics stay in the branches.
    """

    def __init__(self, branches: Sequence[ExpandSqueezeBranch]) -> None:
        self.branches = branches
        first = branches[0]
        self.spec, self._pads, self._ring = first.spec, first._pads, first._rings[0]
        self.norms = [branch.norm for branch in branches if branch.norm is not None]

    @property
    def _of_kernel(self) -> cost.Work:
        return self._as_one([branch._of_kernel for branch in self.branches])

    @property
    def _of_run(self) -> cost.Work:
        run = self._as_one([branch._of_run for branch in self.branches])
        return run.and_then(cost.Work(cost.COUNTED["a scale and shift"])) if self.norms else run

    def _as_one(self, works: Sequence[cost.Work]) -> cost.Work:
        """The sum of the work, with the launches of a single branch."""
        beside = cost.COUNTED["kernels side by side"] * (1 + bool(self.norms)) * (len(works) > 1)
        return cost.Work(works[0].launches + beside, sum(work.once for work in works))

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The kernel of the sum; see `Branch.kernel_with`."""
        first, second = self._first(), self._second()
        between = scale_shift_of(self.norms, first, self._ring) if self.norms else None
        return fit(then(first, second, between), self.spec)

    def __call__(self, x: Tensor) -> Tensor:
        """The sum of the branches on x: two convolutions, the scale of the batch norms folded into the second."""
        first, second = self._first(), self._second()
        x = first.apply(x, self._pads, self.spec.padding_mode)
        if self.norms:
            batch = uses_batch_stats(self.norms[0])
            if batch and self.spec.bias and not any(map(any, self._ring)) and type(self.norms[0]) in TORCH_NORMS:
                return second.apply(fused_batch_norm(self.norms, x))
            statistics = batch_moments(pad(x, self._ring)) if batch else None
            scale, shift = batch_scale_shift(self.norms, *statistics) if statistics else stored_scale_shift(self.norms)
            second = second._replace(kernel=kernels.affine_before(scale, shift, second.kernel))
        if not self.spec.bias:  # the bias of the whole is taken off here, where it costs nothing
            weight, bias = second.kernel
            whole = weight.flatten(2).sum(2) @ first.kernel.bias + bias
            second = second._replace(kernel=Kernel(weight, bias - whole))
        return second.apply(x)

    def _first(self) -> LinearOp:
        convs = [branch.expand for branch in self.branches]
        return _merged(convs, dim=0, bias=side_by_side)

    def _second(self) -> LinearOp:
        convs = [branch.squeeze for branch in self.branches]
        return _merged(convs, dim=1, bias=lambda biases: reduce(torch.add, biases))


def _merged(convs: Sequence[nn.Module], dim: int, bias: Callable[[Sequence[Tensor]], Tensor]) -> LinearOp:
    ops = [linear_op(conv, 0, conv.weight) for conv in convs]  # type: ignore[arg-type]  # convolutions know themselves
    weight = side_by_side([op.kernel.weight for op in ops], dim)
    return ops[0]._replace(kernel=Kernel(weight, bias([op.kernel.bias for op in ops])))


def stacked(branches: Iterable[Branch]) -> list[Branch | ExpandSqueezeStack]:
    """The branches of a block, with expand-squeeze branches of the same shape combined into one stack."""
    parts: list[Branch | ExpandSqueezeStack] = []
    alike: dict[tuple, list[ExpandSqueezeBranch]] = {}
    for branch in branches:
        if isinstance(branch, ExpandSqueezeBranch) and branch.spec.groups == 1:
            bn = branch.norm
            kind = () if bn is None else (type(bn), uses_batch_stats(bn), bn.eps, bn.weight is None, bn.bias is None)
            alike.setdefault((branch.expand.kernel_size, kind), []).append(branch)
        else:
            parts.append(branch)
    return parts + [ExpandSqueezeStack(group) for group in alike.values()]
