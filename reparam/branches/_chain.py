"""A branch of linear modules that run one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..algebra._axes import NORM
from ..algebra._composition import fit, scaled, then
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp, check_valid, identity_op, linear_op
from ..algebra._spec import ConvSpec, Pads, center, pad
from ..bn._norm import (
    BatchNorm,
    batch_moments,
    batch_scale_shift,
    is_norm,
    norms,
    stored_scale_shift,
    uses_batch_stats,
)
from ..errors import NotLinearError, SpecError
from ..folding import cost
from ..modules._guard import is_read, is_read_stage, why_hooked, why_not_read
from ..numerics._autocast import as_conv_input, no_autocast
from ._base import Branch, ScaleShift
from ._stages import ChannelScale, FixedFilter, IdentityPlusPoint


class ChainBranch(Branch):
    r"""A branch that runs linear modules one after the other; the base class of most branches here.

    The input is padded once, before the first module, and no module pads after that. This makes the fused convolution
    exact at the borders. A batch norm before a k x k module gets a ring of values around the output grid; its
    statistics leave out this ring and cover the positions of the output only.

    A subclass builds its modules in `__init__`, then calls `check`, and returns them from `stages`.
    """

    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The modules, in the order in which they run."""

    def check(self) -> None:
        """Check the stages against the spec, and compute the pads of the input and the ring around each stage.

        Raises:
            SpecError: if the stages together are not a convolution of this spec.
            NotLinearError: if a stage is not linear; the message names its position and type.
        """
        channels, ones = self.spec.in_channels, (1,) * self.spec.ndim
        outline = _Outline(torch.Size((channels, 1, *ones)), ones, ones, channels)
        reach = []  # per stage: taps before and after the center tap, and stride
        self.cost, self._of_run, self._of_kernel, shifts = 0.0, cost.Work(), cost.Work(), False
        for index, (stage, step) in enumerate(self.steps()):
            if why := why_hooked(stage) or why_not_read(stage):
                raise NotLinearError(f"{type(self).__name__}, stage {index}: {why}")
            size, apart = step.kernel.size, step.dilation
            channels, inputs = step.kernel.weight.shape[:2]
            is_bn = is_norm(stage)
            self.cost += cost.BATCH_NORM * channels if is_bn else cost.convolution(channels, inputs, prod(size))
            self._of_run = self._of_run.and_then(_of_op(stage), cost.running())
            self._of_kernel = self._of_kernel.and_then(_of_op(stage))
            reach.append([(center(k) * d, (k - 1 - center(k)) * d, s) for k, d, s in zip(size, apart, step.stride)])
            if is_bn and not index:
                self._of_kernel = _made()  # for an identity that is scaled
            before, outline = outline, _then(outline, _outline(step))
            if is_bn:
                self._of_kernel = self._of_kernel.and_then(cost.on_kernel("a scale and shift", outline.weight))
            elif index:
                composed = cost.composition(before.weight, step.kernel.weight.shape, step.groups, shifts)
                self._of_kernel = self._of_kernel.and_then(composed)
            shifts = shifts or is_bn or step.shifts
        if outline.weight != (whole := cost.shape_of(self.spec)) or not reach:
            self._of_kernel = self._of_kernel.and_then(cost.on_kernel("a kernel among zeros", whole))
        self._pads: Pads = self.spec.pads_for(_size_in(self.spec, outline))
        self._rings: list[Pads] = []
        ring = [(0, 0)] * self.spec.ndim
        for taps in reversed(reach):
            self._rings.insert(0, tuple((-low, -high) for low, high in ring))
            ring = [(before + low * s, after + high * s) for (low, high), (before, after, s) in zip(ring, taps)]

    def steps(self) -> Iterator[tuple[nn.Module, LinearOp]]:
        """The stages with their operations on the meta device, which have shapes and geometry but no values."""
        channels = self.spec.in_channels
        for index, stage in enumerate(self.stages()):
            try:
                step = self._step_on_meta(stage, channels)
            except (NotLinearError, SpecError) as error:
                raise type(error)(f"{type(self).__name__}, stage {index}: {error}") from None
            channels = step.kernel.weight.shape[0]
            yield stage, step

    def kernel(self) -> Kernel:
        """Compose the kernels of all stages; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """Compose the kernels of all stages; see `Branch.kernel_with`."""
        return self._composed(scale_shift_of, self.spec)

    def kernels_side_by_side(self, count: int) -> Kernel:
        """Compute the kernels of `count` branches like this one, after their tensors were put in place of its own.

        Each tensor holds those of all branches, concatenated along the first axis: (count * C, ...). The result is
        concatenated too: (count * out, in / groups, *size) and (count * out,), a convolution with `count` times the
        groups. Batch norms use their stored statistics.
        """
        return self._composed(stored_scale_shift, _wide(self.spec, count))

    def can_lie_side_by_side(self) -> bool:
        """Whether `kernels_side_by_side` supports all stages."""
        return all(is_norm(stage) or _widens(stage) for stage in self.stages())

    def _composed(self, scale_shift_of: ScaleShift, spec: ConvSpec) -> Kernel:
        op: LinearOp | None = None
        pending: tuple[Tensor, Tensor] | None = None  # a batch norm that may be merged into the next convolution
        for stage, ring in zip(self.stages(), self._rings):
            if is_norm(stage):
                op = self._identity(spec) if op is None else op if pending is None else scaled(op, *pending)
                pending = scale_shift_of([stage], op, ring)
            else:
                channels = spec.in_channels if op is None else op.outputs
                step = _op_of(stage, channels, self.like)
                if spec is not self.spec:  # the stage may still have its own channel count
                    step = step._replace(groups=channels // step.kernel.weight.shape[1])
                op, pending = step if op is None else then(op, step, pending), None
        op = self._identity(spec) if op is None else op
        return fit(op if pending is None else scaled(op, *pending), spec)

    def _identity(self, spec: ConvSpec) -> LinearOp:
        return identity_op(spec.in_channels, spec.ndim, self.like)

    def forward(self, x: Tensor) -> Tensor:
        """Run the stages on x (N, in_channels, *size); without their bias if the spec has none."""
        x = as_conv_input(x)
        if self.spec.bias:
            return self._run(x, None)
        self.check_read()  # the bias to subtract comes from the kernels
        used: dict[BatchNorm, tuple[Tensor, Tensor]] = {}
        y = self._run(x, used)
        with no_autocast(x.device.type):
            bias = self.kernel_with(lambda bns, *_: used[bns[0]]).bias
        return y - bias.to(y).reshape(-1, *(1,) * self.spec.ndim)

    def _run(self, x: Tensor, used: dict[BatchNorm, tuple[Tensor, Tensor]] | None) -> Tensor:
        """Run the stages; record the scale and shift of each batch norm in `used`, if given."""
        pads: Pads | None = self._pads
        for stage, ring in zip(self.stages(), self._rings):
            if is_norm(stage):
                x = x if pads is None else pad(x, pads, self.spec.padding_mode)
                x = normalize(stage, x, ring, used)
            else:
                x = run(stage, x, pads, self.spec.padding_mode)
            pads = None
        return x if pads is None else pad(x, pads, self.spec.padding_mode)

    def _step_on_meta(self, stage: nn.Module, channels: int) -> LinearOp:
        """The operation of a stage, on the meta device."""
        ndim = self.spec.ndim
        if is_norm(stage):
            if any(True for _ in stage.children()):
                raise NotLinearError(f"{type(stage).__name__} holds an activation, which belongs outside the block")
            takes, step = stage.num_features, identity_op(channels, ndim, self.like.to("meta"))
            if not _fits(stage, ndim):
                raise SpecError(
                    f"{type(stage).__name__} does not take {ndim} spatial axes, but the spec has ndim={ndim}"
                )
        else:
            step = _op_of(stage, channels, self.like.to("meta"))
            step = step._replace(kernel=Kernel(*(tensor.detach().to("meta") for tensor in step.kernel)))
            takes = step.kernel.weight.shape[1] * step.groups
            if len(step.kernel.size) != ndim:
                raise SpecError(
                    f"{type(stage).__name__} has {len(step.kernel.size)} spatial axes, but the spec has ndim={ndim}"
                )
        if takes != channels:
            raise SpecError(f"{type(stage).__name__} takes {takes} channels, but gets {channels}")
        return step


def _of_op(stage: nn.Module) -> cost.Work:
    """The work of computing the operation of a stage; none for a layer of torch, whose weights are used directly."""
    if isinstance(stage, Branch):
        return stage._of_kernel
    only_read = type(stage).__module__.startswith("torch.nn.") or is_norm(stage) or isinstance(stage, ChannelScale)
    return cost.Work() if only_read else _made()


def _made() -> cost.Work:
    return cost.Work(cost.COUNTED["a kernel that is made"])


class _Outline(NamedTuple):
    """Shapes and geometry of an operation. It is hashable: equal blocks of a network share cached results."""

    weight: torch.Size
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def on_meta(self) -> LinearOp:
        weight = torch.empty(self.weight, device="meta")
        return LinearOp(Kernel(weight, weight.new_empty(self.weight[0])), self.stride, self.dilation, self.groups)


def _outline(op: LinearOp) -> _Outline:
    return _Outline(op.kernel.weight.shape, tuple(op.stride), tuple(op.dilation), op.groups)


@lru_cache(maxsize=1024)
def _then(first: _Outline, second: _Outline) -> _Outline:
    return _outline(then(first.on_meta(), second.on_meta()))


@lru_cache(maxsize=1024)
def _size_in(spec: ConvSpec, outline: _Outline) -> tuple[int, ...]:
    """The taps of an operation on the grid of a spec; raises if it does not fit."""
    fit(outline.on_meta(), spec)
    return fit(outline.on_meta(), spec, embedded=False).size


@lru_cache(maxsize=1024)
def _wide(spec: ConvSpec, count: int) -> ConvSpec:
    """The spec of `count` convolutions side by side."""
    inputs, outputs, groups = (count * number for number in (spec.in_channels, spec.out_channels, spec.groups))
    return spec.replace(in_channels=inputs, out_channels=outputs, groups=groups)


def _widens(stage: nn.Module) -> bool:
    """Whether the operation of a stage follows from its tensors alone, for any number of channels."""
    if isinstance(stage, ChannelScale):
        return stage.scale.numel() == stage.channels
    return type(stage) in (nn.Conv1d, nn.Conv2d, nn.Conv3d, FixedFilter, IdentityPlusPoint)


def _op_of(module: nn.Module, channels: int, like: Tensor) -> LinearOp:
    """The operation of a stage, which may itself be a branch or a block."""
    if not isinstance(module, Branch):  # not registered, because singledispatch on an abstract class cannot be compiled
        return check_valid(module, linear_op(module, channels, like))
    spec = module.spec
    if any(map(any, spec.pads)):
        raise NotLinearError(
            f"{type(module).__name__} pads its input ({spec}), but a branch pads only its own input, by the padding of "
            "its ConvSpec; build the module with padding=0"
        )
    if any(True for _ in norms(module)):
        raise NotLinearError(f"{type(module).__name__} holds batch norms; put them into the outer branch itself")
    weight, bias = module.kernel()
    kernel = Kernel(weight, bias if spec.bias else torch.zeros_like(bias))
    return LinearOp(kernel, spec.stride, spec.dilation, spec.groups)


def run(stage: nn.Module, x: Tensor, pads: Pads | None, padding_mode: str) -> Tensor:
    """Pad x and run a stage on it: as the convolution that its weights describe, or itself if it may differ."""
    if is_read_stage(stage):
        return _op_of(stage, x.shape[1], x).apply(x, pads, padding_mode)
    return stage(x if pads is None else pad(x, pads, padding_mode))


def _fits(bn: BatchNorm, ndim: int) -> bool:
    """Whether a batch norm accepts inputs with this many spatial axes."""
    return all(axes == ndim for axes, kind in NORM.items() if isinstance(bn, kind))


def normalize(
    bn: BatchNorm, x: Tensor, ring: Pads = (), used: dict[BatchNorm, tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Apply `bn` to x; batch statistics leave out the ring of x."""
    if any(map(any, ring)) and uses_batch_stats(bn) and not is_read(bn):
        raise NotLinearError(
            f"{why_hooked(bn) or why_not_read(bn)}; before a k x k convolution its statistics leave out the ring of "
            "the padding, which only a plain batch norm can do"
        )
    if not uses_batch_stats(bn):
        if used is not None:
            used[bn] = stored_scale_shift([bn])
        return bn(x)
    if used is None and not any(map(any, ring)) and not isinstance(bn, nn.SyncBatchNorm):  # torch's runs on GPUs only
        return bn(x)
    scale, shift = batch_scale_shift([bn], *batch_moments(pad(x, ring)))
    if used is not None:
        used[bn] = (scale, shift)
    shape = (-1, *(1,) * (x.dim() - 2))
    return (x * scale.reshape(shape) + shift.reshape(shape)).to(x.dtype)  # a batch norm may be of higher precision
