"""A block: the sum of branches of one spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from . import kernels
from .branches import Branch
from .branches.base import ScaleShift
from .errors import SpecError
from .kernels import Kernel
from .norm import NormChoice, make_norm, stored_scale_shift
from .spec import ConvSpec

BranchFactory = Callable[[ConvSpec], Branch]


class ReparamBlock(Branch):
    r"""The sum of several branches of one spec, and a batch norm after it if asked for: equal to one convolution.

    $$y = N\Big(\sum_j B_j(x)\Big) = \mathrm{conv}(x, W, b)$$

    A block is linear; the activation stays outside. It is a branch itself, so blocks may be nested.

    Args:
        spec: the geometry of every branch and of the whole.
        branches: callables that take the spec and return a branch: the classes themselves, or `functools.partial` of
            them.
        bn: whether a batch norm follows the sum, or a callable that makes one from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: without any branch, for a branch of another spec, or for `bn` where the spec has no bias.

    Example:
        >>> from functools import partial
        >>> from reparam import ConvBNBranch, IdentityBranch
        >>> block = ReparamBlock(ConvSpec(8), [ConvBNBranch, partial(ConvBNBranch, kernel_size=1), IdentityBranch])
        >>> x = torch.rand(2, 8, 9, 7)
        >>> _ = block(x)  # the batch norms see a batch
        >>> block = block.eval()
        >>> torch.allclose(block.to_conv()(x), block(x), atol=1e-6)
        True
    """

    def __init__(self, spec: ConvSpec, branches: Iterable[BranchFactory], *, bn: NormChoice = False) -> None:
        super().__init__(spec)
        self.branches = nn.ModuleList(factory(spec) for factory in branches)
        if not self.branches:
            raise SpecError("a block needs at least one branch, but got branches=[]")
        for index, branch in enumerate(self.branches):
            if not isinstance(branch, Branch) or branch.spec != spec:
                came = branch.spec if isinstance(branch, Branch) else type(branch).__name__
                raise SpecError(f"branch {index} must be a Branch of the block's spec ({spec}), but got {came}")
        if bn and not spec.bias:
            raise SpecError("a batch norm after the sum shifts it, so that bn needs a spec with bias=True")
        self.norm = make_norm(bn, spec.out_channels, spec.ndim)

    def kernel(self) -> Kernel:
        """The kernel of the whole block; see `Branch.kernel`."""
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The kernel of the whole block, for batch norms that scale and shift as told."""
        total = kernels.add(*(branch.kernel_with(scale_shift_of) for branch in self._parts()))
        return total if self.norm is None else kernels.affine(total, *scale_shift_of(self.norm))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches on x (N, in_channels, *size)."""
        total = reduce(torch.add, (branch(x) for branch in self.branches))
        return total if self.norm is None else self.norm(total)

    def _parts(self) -> list[Branch]:
        return list(self.branches)  # type: ignore[arg-type]  # a ModuleList of branches only


class ConvBlock(ReparamBlock):
    """The base of the papers' blocks: takes what `nn.Conv2d` takes, and builds its branches by `design`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; None means `in_channels`.
        kernel_size: taps per axis.
        stride: step of the output grid, in pixels of the input.
        padding: pixels on both sides, "same", "valid", or None for "the same size at stride 1".
        dilation: distance of two taps, in pixels.
        groups: number of independent channel groups.
        bias: without one, the biases of the branches are taken off the sum.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: of the parameters.
        dtype: of the parameters.
        ndim: number of spatial axes, 1, 2 or 3.
        **options: those of the block's `design`.
    """

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        ndim: int = 2,
        **options: Any,
    ) -> None:
        spec = ConvSpec(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, ndim=ndim
        )
        with torch.device(device if device is not None else torch.get_default_device()):
            super().__init__(spec, self.design(spec, **options))
        self.to(dtype=dtype)

    @staticmethod
    def design(spec: ConvSpec) -> list[BranchFactory]:
        """The branches that the paper gives a block of this spec; its keyword arguments are the block's options."""
        raise NotImplementedError
