"""MobileIE and SYENet: many parallel convolutions, each with and without a batch norm, and a 1x1 over all of them."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._composition import fit, then
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp, linear_op
from ..algebra._spec import ConvSpec
from ..bn._norm import BatchNorm, NormChoice, make_norm, stored_scale_shift
from ..branches import Branch
from ..branches._base import ScaleShift
from ..branches._chain import normalize, run
from ..folding import cost
from ..numerics._autocast import as_conv_input, no_autocast
from ._block import BranchFactory
from ._conv_block import ConvBlock
from ._sizes import lines_of


class MBRConvBlock(ConvBlock):
    r"""The multi-branch re-parameterizable convolution of MobileIE, equal to one k x k convolution.

    $$y = W\,[c_1, \dots, c_n, \mathrm{BN}_1(c_1'), \dots, \mathrm{BN}_n(c_n')] + b,\qquad c_j = W_j * x + b_j$$

    The $W_j$ have k x k, 1x1, 3x3 (if k > 3), 3x1 and 1x3 taps, each with `expansion` times the output channels. Equal
    sizes count once, so k = 1 has a single one. $c_j' = c_j$ in MobileIE; in SYENet it is a separate convolution. W is
    one 1x1 convolution over all of them. With groups, everything is grouped.

    Source: H. Yan et al., "MobileIE: An Extremely Lightweight and Effective ConvNet for Real-Time Image Enhancement on
    Mobile Devices", ICCV 2025, arXiv 2507.01838, classes MBRConv1, 3 and 5 of the authors' code; W. Gou et al.,
    "SYENet: A Simple Yet Effective Network for Multiple Low-Level Vision Tasks with Real-time Performance on Mobile
    Device", ICCV 2023, arXiv 2308.08137, classes ConvRepPoint, ConvRep3 and ConvRep5. MobileIE's "incremental weight
    optimization" is not part of it.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        expansion: channels of each $c_j$ per output channel ("rep_scale").
        shared: whether the terms with a batch norm use the same $c_j$ as those without (MobileIE), or separate
            convolutions (SYENet).
        bn: whether the terms with a batch norm exist, or a callable that makes one.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has.

    Example:
        >>> block = MBRConvBlock(4, 6, 5)
        >>> x = torch.rand(2, 4, 9, 9)
        >>> _ = block(x)
        >>> torch.allclose(block.eval().to_conv()(x), block(x), atol=1e-5)
        True
    """

    expansion: int = 4
    shared: bool = True
    bn: NormChoice = True

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """A single branch, which holds everything."""
        return [partial(SideBySide, sizes=_sizes(spec), expansion=self.expansion, shared=self.shared, bn=self.bn)]


def _sizes(spec: ConvSpec) -> list[tuple[int, ...]]:
    """Taps of the convolutions, each size once."""
    small = tuple(min(k, 3) for k in spec.kernel_size)
    return list(dict.fromkeys([spec.kernel_size, (1,) * spec.ndim, small, *lines_of(small)]))


class SideBySide(Branch):
    """Parallel convolutions and batch norms of them, concatenated, then a 1x1 convolution."""

    def __init__(
        self, spec: ConvSpec, sizes: list[tuple[int, ...]], expansion: int, shared: bool, bn: NormChoice
    ) -> None:
        super().__init__(spec)
        wide = expansion * spec.out_channels

        def convs() -> list[nn.Module]:
            return [spec.unpadded(out_channels=wide, kernel_size=size, bias=True).new_conv() for size in sizes]

        norms = [norm for _ in sizes if (norm := make_norm(bn, wide, spec.ndim)) is not None]
        self.sizes, self.convs, self.norms = sizes, nn.ModuleList(convs()), nn.ModuleList(norms)
        self.norm_convs = nn.ModuleList([] if shared or not norms else convs())
        total = wide * (len(self.convs) + len(norms))
        self.out = spec.pointwise(in_channels=total, bias=True).new_conv()
        self._estimate(wide, total)

    def _estimate(self, wide: int, middle: int) -> None:
        each = cost.shape_of(self.spec.replace(out_channels=wide))
        convs = [*self.convs, *self.norm_convs]
        plain = [cost.convolution(wide, each[1], prod(size)) for size in self.sizes * (len(convs) // len(self.sizes))]
        inside = middle // self.spec.groups
        self.cost = sum(plain) + cost.convolution(self.spec.out_channels, inside, 1)
        self.cost += cost.BATCH_NORM * wide * len(self.norms)
        self._of_run = cost.running(len(convs) + len(self.norms) + 2)
        whole = (middle, *each[1:])
        composed = cost.composition(whole, (self.spec.out_channels, inside, 1), self.spec.groups, True)
        parts = [cost.on_kernel("a kernel among zeros", each)] * len(convs)
        parts += [cost.on_kernel("a scale and shift", each)] * len(self.norms)
        self._of_kernel = composed.and_then(*parts)

    def kernel(self) -> Kernel:
        """The kernel of the whole; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The kernel of the whole; see `Branch.kernel_with`."""
        ring = ((0, 0),) * self.spec.ndim
        ops = [self._op(conv) for conv in self.convs]
        parts = [op.kernel for op in ops]
        bases = [self._op(conv) for conv in self.norm_convs] or ops
        parts += [kernels.affine(op.kernel, *scale_shift_of([bn], op, ring)) for bn, op in zip(self.norms, bases)]  # type: ignore[list-item]  # a ModuleList of batch norms only
        weight, bias = (self._concatenated(tensors, 0) for tensors in zip(*parts))
        first = ops[0]._replace(kernel=Kernel(weight, bias))
        return fit(then(first, linear_op(self.out, weight.shape[0], self.like)), self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """Run the convolutions on x (N, in_channels, *size); without the bias of the whole if the spec has none."""
        x = as_conv_input(x)
        if not self.spec.bias:  # the bias to subtract is read from the kernel
            self.check_read()
        used: dict[BatchNorm, tuple[Tensor, Tensor]] | None = None if self.spec.bias else {}
        parts = [self._run(conv, size, x) for conv, size in zip(self.convs, self.sizes)]
        bases = [self._run(conv, size, x) for conv, size in zip(self.norm_convs, self.sizes)] or parts
        parts = parts + [normalize(bn, base, used=used) for bn, base in zip(self.norms, bases)]  # type: ignore[arg-type]  # likewise
        y = self.out(self._concatenated(parts, 1))
        if used is None:
            return y
        with no_autocast(x.device.type):
            bias = self.kernel_with(lambda bns, *_: used[bns[0]]).bias
        return y - bias.to(y).reshape(-1, *(1,) * self.spec.ndim)

    def _op(self, conv: nn.Module) -> LinearOp:
        """A convolution, embedded in all taps of the spec."""
        op = linear_op(conv, self.spec.in_channels, self.like)
        return op._replace(kernel=kernels.embed(op.kernel, self.spec.kernel_size))

    def _run(self, conv: nn.Module, size: tuple[int, ...], x: Tensor) -> Tensor:
        return run(conv, x, self.spec.pads_for(size), self.spec.padding_mode)

    def _concatenated(self, tensors: tuple[Tensor, ...] | list[Tensor], dim: int) -> Tensor:
        """Concatenate within every group, as the grouped 1x1 expects."""
        groups = [tensor.unflatten(dim, (self.spec.groups, -1)) for tensor in tensors]
        return torch.cat(groups, dim + 1).flatten(dim, dim + 1)
