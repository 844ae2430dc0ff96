"""A branch that works on some of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra import _kernels as kernels
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp
from ..algebra._spec import ConvSpec, Pads
from ..bn._norm import Norms, stored_scale_shift
from ..errors import SpecError
from ..folding import cost
from ._base import Branch, ScaleShift, made_by

Channels = tuple[int, int]
"""A range of channels: the first one, and the one after the last."""


class SliceBranch(Branch):
    r"""A branch B on some of the channels, with zero on the others.

    $$y[a:b] = B(x[i:j]),\qquad y[:a] = y[b:] = 0$$

    The sum of several slices treats each part of the channels differently. FasterNet's partial convolution is a
    convolution of the first quarter plus an identity of the rest. The depthwise Inception convolution has an identity,
    a square and two lines of taps.

    Source: J. Chen et al., "Run, Don't Walk: Chasing Higher FLOPS for Faster Neural Networks" (FasterNet), CVPR 2023,
    arXiv 2303.03667, section 3.2; W. Yu et al., "InceptionNeXt: When Inception Meets ConvNeXt", CVPR 2024, arXiv
    2303.16900, section 3.2.

    Args:
        spec: the geometry of the whole.
        branch: a callable that takes the spec of the part and returns B: the class of a branch, or a
            `functools.partial` of it. With groups, the part has the groups that its channels belong to.
        channels: (i, j), the range of input channels; with groups, it must consist of whole groups.
        outputs: (a, b), the range of output channels. None means the same as `channels`, or, with groups, the outputs
            of the same groups.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for channels that the spec does not have or that split a group, or if `branch` returns anything but
            a branch of the part's spec.

    Example:
        >>> from functools import partial
        >>> from reparam import ConvBranch, IdentityBranch, ReparamBlock
        >>> first = partial(SliceBranch, branch=ConvBranch, channels=(0, 4))
        >>> rest = partial(SliceBranch, branch=IdentityBranch, channels=(4, 16))
        >>> block = ReparamBlock(ConvSpec(16), [first, rest])
        >>> x = torch.rand(1, 16, 7, 7)
        >>> torch.equal(block(x)[:, 4:], x[:, 4:]), block.branches[0].branch.conv.weight.shape == (4, 4, 3, 3)
        (True, True)
    """

    def __init__(
        self,
        spec: ConvSpec,
        branch: Callable[[ConvSpec], Branch],
        *,
        channels: Sequence[int],
        outputs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(spec)
        self.channels = _range("channels", channels, spec.in_channels)
        own = _of_same_groups(self.channels, spec)
        self.outputs = _range("outputs", own if outputs is None else outputs, spec.out_channels)
        if spec.groups > 1 and self.outputs != own:
            raise SpecError(
                f"with groups={spec.groups} the channels {self.channels} determine the outputs {own}, but got "
                f"outputs={outputs!r}; leave that argument out"
            )
        (i, j), (a, b) = self.channels, self.outputs
        groups = (j - i) * spec.groups // spec.in_channels or 1
        self.branch = made_by(branch, spec.replace(in_channels=j - i, out_channels=b - a, groups=groups))
        self.cost = self.branch.cost + cost.ADDITION * spec.out_channels
        self._of_run = self.branch._of_run.and_then(cost.running(2))
        self._of_kernel = self.branch._of_kernel.and_then(
            cost.on_kernel("a kernel among zeros", cost.shape_of(spec), 2)
        )
        self.register_buffer("place", torch.tensor([self.channels, self.outputs]))  # saved, so that files contain it

    def kernel(self) -> Kernel:
        """The kernel of the branch, with zeros for the other channels; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The kernel of the branch, with zeros for the other channels; see `Branch.kernel_with`."""

        def of_part(bns: Norms, op: LinearOp, ring: Pads) -> tuple[Tensor, Tensor]:
            return scale_shift_of(bns, self._of_all_channels(op), ring)

        known = scale_shift_of is stored_scale_shift or self.spec.groups > 1  # does not need the operation
        weight, bias = self._wide(self.branch.kernel_with(scale_shift_of if known else of_part))
        return Kernel(F.pad(weight, (0, 0) * (weight.dim() - 1) + self._around), F.pad(bias, self._around))

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch on its part of x (N, in_channels, *size); the other outputs are zero."""
        (i, j), whole = self.channels, self.spec.in_channels
        y = self.branch(x.split((i, j - i, whole - j), 1)[1])
        return F.pad(y, (0, 0) * self.spec.ndim + self._around)

    @property
    def _around(self) -> tuple[int, int]:
        """The number of outputs before and after those of the branch."""
        return self.outputs[0], self.spec.out_channels - self.outputs[1]

    def _of_all_channels(self, op: LinearOp) -> LinearOp:
        """An operation on the part, written for all channels of a spec without groups."""
        dense = kernels.regroup(op.kernel, op.groups, 1)
        return op._replace(kernel=self._wide(dense), groups=1)

    def _wide(self, kernel: Kernel) -> Kernel:
        """A kernel of the part, widened to all input channels; with groups, unchanged."""
        if self.spec.groups > 1:
            return kernel
        before, after = self.channels[0], self.spec.in_channels - self.channels[1]
        return Kernel(F.pad(kernel.weight, (0, 0) * self.spec.ndim + (before, after)), kernel.bias)

    def extra_repr(self) -> str:
        return f"{self.spec}, channels={self.channels}, outputs={self.outputs}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        told = state_dict.get(f"{prefix}place")
        ours = [list(self.channels), list(self.outputs)]
        if told is not None and not told.is_meta and told.tolist() != ours:
            args[-1].append(f"{prefix}place is {told.tolist()} (channels, outputs), but that of this branch is {ours}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def _range(name: str, given: Sequence[int], most: int) -> Channels:
    first, end = given if len(given) == 2 else (0, 0)
    if not 0 <= first < end <= most:
        raise SpecError(f"{name} must be (first, end) with 0 <= first < end <= {most}, but got {name}={given!r}")
    return int(first), int(end)


def _of_same_groups(channels: Channels, spec: ConvSpec) -> Channels:
    """The outputs of the groups that these channels belong to; without groups, the same channels."""
    if spec.groups == 1:
        return channels
    each = spec.in_channels // spec.groups
    if any(channel % each for channel in channels):
        raise SpecError(
            f"with groups={spec.groups} a range of channels must consist of whole groups of {each}, but got "
            f"channels={channels}"
        )
    first, end = (channel // each * (spec.out_channels // spec.groups) for channel in channels)
    return first, end
