"""Any branch with a learned scale."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..algebra import _kernels as kernels
from ..algebra._kernels import Kernel
from ..algebra._spec import ConvSpec
from ..bn._norm import stored_scale_shift
from ..folding import cost
from ._base import Branch, ScaleShift, made_by
from ._stages import ChannelScale


class ScaledBranch(Branch):
    r"""A branch B with a learned scale s, per channel or one for all channels: y = s B(x).

    Source: the scales of OREPA's terms (M. Hu et al., CVPR 2022, arXiv 2204.00826), of OmniShift (Z. Yang et al.,
    "Restore-RWKV", arXiv 2407.11087) and of RTMoSR's RepConv.

    Args:
        spec: the geometry of the branch and of the whole.
        branch: a callable that takes the spec and returns B: the class of a branch, or a `functools.partial` of it.
        start: initial value of s. With 0 the branch adds nothing at first, and its parameters get no gradient until s
            has changed.
        shared: whether all channels have the same s, which then has shape (1,) instead of (out_channels,).

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: if `branch` returns anything but a branch of this spec.

    Example:
        >>> import torch
        >>> from reparam import ConvBNBranch, IdentityBranch, ReparamBlock
        >>> x = torch.rand(1, 4, 5, 7)
        >>> half = ScaledBranch(ConvSpec(4), IdentityBranch, start=0.5)
        >>> torch.allclose(half(x), x / 2), half.scale.scale.shape == (4,)
        (True, True)
    """

    def __init__(
        self, spec: ConvSpec, branch: Callable[[ConvSpec], Branch], *, start: float = 1.0, shared: bool = False
    ) -> None:
        super().__init__(spec)
        self.branch = made_by(branch, spec)
        self.scale = ChannelScale(spec.out_channels, spec.ndim, start=start, shared=shared)
        self.cost = self.branch.cost + cost.ADDITION * spec.out_channels
        self._of_run = self.branch._of_run.and_then(cost.running())
        self._of_kernel = self.branch._of_kernel.and_then(cost.on_kernel("a scale", cost.shape_of(spec)))

    def kernel(self) -> Kernel:
        """Scale the kernel of the branch; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """Scale the kernel of the branch; see `Branch.kernel_with`."""
        kernel = self.branch.kernel_with(scale_shift_of)
        scale = self.scale.scale.expand(self.spec.out_channels)
        return Kernel(kernels.scaled(kernel.weight, scale), kernel.bias * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch on x (N, in_channels, *size) and scale the result."""
        return self.scale(self.branch(x))
