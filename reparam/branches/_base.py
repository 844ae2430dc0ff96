"""What a branch is: a linear module with a spec and a kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._axes import NORM
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp, fit, identity_op, linear_op, then
from ..algebra._spec import ConvSpec, Pads, centre, pad
from ..bn._norm import (
    BatchNorm,
    Norms,
    batch_moments,
    batch_scale_shift,
    is_norm,
    norms,
    stored_scale_shift,
    uses_batch_stats,
    why_not_ready,
)
from ..errors import FuseError, NotLinearError, SpecError
from ..folding import cost
from ..modules._constants import constant
from ..modules._guard import altered, is_read, is_read_stage, is_unaltered, why_hooked, why_not_read
from ..modules._hooks import copy_module
from ..modules._sound import unsound_in
from ..modules._start import fresh_start, remembering
from ..numerics._autocast import as_conv_input, no_autocast
from ..numerics._precision import module_in_float64, rounded_like
from ._geometry import Mode, Number, Outputs, Padding, Sizes
from ._weight import WithoutWeight

ScaleShift = Callable[[Norms, LinearOp, Pads], tuple[Tensor, Tensor]]
"""Tells the scale and shift of batch norms, given what ran before them and the ring that is cropped after them."""


class Branch(WithoutWeight, ABC):
    r"""A linear module that is equal to one convolution: y = conv(x, W, b) in the geometry of `spec`.

    A branch of one's own defines `kernel`; `forward` and `to_conv` follow from it. For code that was written for
    convolutions it has `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups` and
    `padding_mode`, to be read only: what `to_conv()` has, so that `padding` is "same" where one side has a pixel more.
    There is no `weight` and no `bias`, and the error says why: `to_conv()` has them.

    Args:
        spec: the geometry of the equivalent convolution.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Example:
        >>> class Blur(Branch):
        ...     def kernel(self):
        ...         c = self.spec.in_channels
        ...         return Kernel(self.like.new_ones(c, 1, 3, 3) / 9, self.like.new_zeros(c))
        >>> blur = Blur(ConvSpec(4, groups=4))
        >>> x = torch.rand(1, 4, 8, 8)
        >>> torch.allclose(blur(x), blur.to_conv()(x))
        True
    """

    cost: float
    """Estimated cost of a training step, per output pixel; see `reparam.folding.cost`."""

    like: Tensor
    """An empty buffer that follows the module's dtype and device; make constants with it."""

    in_channels = Number()
    out_channels = Outputs()
    kernel_size = Sizes()
    stride = Sizes()
    padding = Padding()
    dilation = Sizes()
    groups = Number()
    padding_mode = Mode()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = remembering(cls.__init__)  # type: ignore[method-assign]  # for `reset_parameters`

    @remembering
    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        constant(self, "like", partial(torch.zeros, 0))
        self.cost = cost.convolution(spec.out_channels, spec.in_channels // spec.groups, prod(spec.kernel_size))

    @abstractmethod
    def kernel(self) -> Kernel:
        """The equivalent kernel, differentiable, in the dtype of the parameters; fewer taps than the spec's will do.

        Raises:
            StatisticsError: if a batch norm inside uses batch statistics.
        """

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The kernel for batch norms that scale and shift as told; a branch that holds none need not define it."""
        return self.kernel()

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, in_channels, *size) with the kernel."""
        return self.spec.convolve(as_conv_input(x), *self._full(self.kernel()))

    def to_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """The one `nn.Conv` that equals this module, computed in float64 and rounded once to its dtype.

        Returns:
            A new convolution on the same device, with the dtype, memory format and mode of this module, which
            is not changed.

        Raises:
            FuseError: if a batch norm inside uses batch statistics, or never saw a batch, or a number is not finite.
        """
        if problems := [f"{name or 'itself'!r}: {why}" for name, why in self.problems().items()]:
            raise FuseError(f"cannot fuse {type(self).__name__}: " + "; ".join(problems))
        exact = module_in_float64(copy_module(self))
        with torch.no_grad():
            weight, bias = exact._full(exact.kernel())
            weight, bias = rounded_like(weight, self.like), rounded_like(bias, self.like)
            if self._channels_last():
                weight = weight.contiguous(memory_format=torch.channels_last)
        trainable = any(parameter.requires_grad for parameter in self.parameters())
        conv = self.spec.build_conv(weight.requires_grad_(trainable), bias.requires_grad_(trainable))
        conv.fused_from = type(self).__name__  # type: ignore[assignment]
        return conv.train(self.training)

    def problems(self) -> dict[str, str]:
        """Why there is no convolution now that equals this module, by the name of what is in the way inside."""
        not_ready = {name: why for name, bn in norms(self) if (why := why_not_ready(bn))}
        return not_ready | unsound_in(self) | altered(self)

    def check_read(self) -> None:
        """Checks that what runs is what a kernel is read from.

        Raises:
            NotLinearError: if a layer inside was given another forward, a hook or a class of its own; it is named.
        """
        if is_unaltered(self):
            return
        if found := "; ".join(f"{name or 'itself'!r}: {why}" for name, why in altered(self).items()):
            raise NotLinearError(f"{type(self).__name__} has no kernel now: {found}")

    def reset_parameters(self) -> None:
        """Draws a fresh start, as the constructor does: the same numbers for the same seed, statistics as if unseen.

        Every parameter and buffer stays the object that it is. Layers that were handed to a `SequentialBranch` are
        reset by their own `reset_parameters`.

        Raises:
            OptionError: if it cannot be built anew, or was changed since it was built; it is as before then.
            StatisticsError: if a batch norm inside was frozen.
        """
        fresh_start(self)()

    def fuse(self) -> nn.Module:
        """The same as `to_conv`, under the name that timm's `reparameterize_model` looks for."""
        return self.to_conv()

    def extra_repr(self) -> str:
        return str(self.spec)

    def _full(self, kernel: Kernel) -> Kernel:
        """Checks a kernel against the spec and writes it with all of the spec's taps."""
        spec = self.spec
        shape = (spec.out_channels, spec.in_channels // spec.groups)
        if tuple(kernel.weight.shape[:2]) != shape or tuple(kernel.bias.shape) != shape[:1]:
            raise SpecError(
                f"{type(self).__name__}.kernel() returned a weight of shape {tuple(kernel.weight.shape)} and a bias of "
                f"shape {tuple(kernel.bias.shape)}, but its spec asks for ({shape[0]}, {shape[1]}, ...) and {shape[:1]}"
            )
        return kernels.embed(kernel, spec.kernel_size)

    def _channels_last(self) -> bool:
        weights = [p for p in self.parameters() if p.dim() == 4]
        return any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)


class ChainBranch(Branch):
    r"""A branch that runs linear modules one after the other; the base of every shipped branch.

    The input is padded once, before the first module, and every module after it is a valid convolution: this is what
    makes the fused convolution exact at the borders. A batch norm that is followed by a k x k module sees a ring of
    values beyond the output grid; its statistics are taken without this ring, over the positions of the output.

    A final branch builds its modules, then calls `check`, and names them in `stages`.
    """

    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The modules in the order in which they run."""

    def check(self) -> None:
        """Checks the stages against the spec, and works out the pads of the input and the ring around each stage.

        Raises:
            SpecError: if the stages do not make up a convolution of this spec.
            NotLinearError: if a stage is not linear; its position and type are named.
        """
        op = identity_op(self.spec.in_channels, self.spec.ndim, self.like.to("meta"))
        reach = []  # of each stage: taps before and after the centre tap, and stride
        self.cost = 0.0
        for index, (stage, step) in enumerate(self.steps()):
            if why := why_hooked(stage) or why_not_read(stage):
                raise NotLinearError(f"{type(self).__name__}, stage {index}: {why}")
            size, spread = step.kernel.size, step.dilation
            channels, inputs = step.kernel.weight.shape[:2]
            is_bn = is_norm(stage)
            self.cost += cost.BATCH_NORM * channels if is_bn else cost.convolution(channels, inputs, prod(size))
            reach.append([(centre(k) * d, (k - 1 - centre(k)) * d, s) for k, d, s in zip(size, spread, step.stride)])
            op = then(op, step)
        size = fit(op, self.spec, embedded=False).size
        fit(op, self.spec)
        self._pads: Pads = self.spec.pads_for(size)
        self._rings: list[Pads] = []
        ring = [(0, 0)] * self.spec.ndim
        for taps in reversed(reach):
            self._rings.insert(0, tuple((-low, -high) for low, high in ring))
            ring = [(before + low * s, after + high * s) for (low, high), (before, after, s) in zip(ring, taps)]

    def steps(self) -> Iterator[tuple[nn.Module, LinearOp]]:
        """The stages, each with its operation, on the meta device: what is known of it without its numbers."""
        channels = self.spec.in_channels
        for index, stage in enumerate(self.stages()):
            try:
                step = self._step_on_meta(stage, channels)
            except (NotLinearError, SpecError) as error:
                raise type(error)(f"{type(self).__name__}, stage {index}: {error}") from None
            channels = step.kernel.weight.shape[0]
            yield stage, step

    def kernel(self) -> Kernel:
        """The composed kernel of all stages; see `Branch.kernel`."""
        self.check_read()
        return self.kernel_with(stored_scale_shift)

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """The composed kernel, for batch norms that scale and shift as told."""
        op: LinearOp | None = None
        for stage, ring in zip(self.stages(), self._rings):
            channels = self.spec.in_channels if op is None else op.kernel.weight.shape[0]
            if is_norm(stage):
                op = identity_op(channels, self.spec.ndim, self.like) if op is None else op
                op = op._replace(kernel=kernels.affine(op.kernel, *scale_shift_of([stage], op, ring)))
            else:
                step = _op_of(stage, channels, self.like)
                op = step if op is None else then(op, step)
        return fit(op or identity_op(self.spec.in_channels, self.spec.ndim, self.like), self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the stages on x (N, in_channels, *size), without their bias if the spec has none."""
        x = as_conv_input(x)
        if self.spec.bias:
            return self._run(x, None)
        self.check_read()  # the bias that is taken off is read
        used: dict[BatchNorm, tuple[Tensor, Tensor]] = {}
        y = self._run(x, used)
        with no_autocast(x.device.type):
            bias = self.kernel_with(lambda bns, *_: used[bns[0]]).bias
        return y - bias.to(y).reshape(-1, *(1,) * self.spec.ndim)

    def _run(self, x: Tensor, used: dict[BatchNorm, tuple[Tensor, Tensor]] | None) -> Tensor:
        """Runs the stages; into `used`, if given, goes what each batch norm did."""
        pads: Pads | None = self._pads
        for stage, ring in zip(self.stages(), self._rings):
            if is_norm(stage):
                x = x if pads is None else pad(x, pads, self.spec.padding_mode)
                x = normalise(stage, x, ring, used)
            else:
                x = run(stage, x, pads, self.spec.padding_mode)
            pads = None
        return x if pads is None else pad(x, pads, self.spec.padding_mode)

    def _step_on_meta(self, stage: nn.Module, channels: int) -> LinearOp:
        """The operation of a stage, without its numbers."""
        ndim = self.spec.ndim
        if is_norm(stage):
            if any(True for _ in stage.children()):
                raise NotLinearError(f"{type(stage).__name__} holds an activation, which belongs outside of the block")
            takes, step = stage.num_features, identity_op(channels, ndim, self.like.to("meta"))
            if not _fits(stage, ndim):
                raise SpecError(f"{type(stage).__name__} does not take the {ndim} spatial axes of ndim={ndim}")
        else:
            step = _op_of(stage, channels, self.like.to("meta"))
            step = step._replace(kernel=Kernel(*(tensor.detach().to("meta") for tensor in step.kernel)))
            takes = step.kernel.weight.shape[1] * step.groups
            if len(step.kernel.size) != ndim:
                raise SpecError(
                    f"{type(stage).__name__} has {len(step.kernel.size)} spatial axes, the spec ndim={ndim}"
                )
        if takes != channels:
            raise SpecError(f"{type(stage).__name__} takes {takes} channels, but is given {channels}")
        return step


def _op_of(module: nn.Module, channels: int, like: Tensor) -> LinearOp:
    """The operation of a stage, which may be a branch or a block itself."""
    if not isinstance(module, Branch):  # not registered: singledispatch on an abstract class cannot be compiled
        return linear_op(module, channels, like)
    spec = module.spec
    if any(map(any, spec.pads)):
        raise NotLinearError(
            f"{type(module).__name__} pads its input ({spec}), but inside a branch only the input is padded, by the "
            "padding of the ConvSpec; build it with padding=0"
        )
    if any(True for _ in norms(module)):
        raise NotLinearError(f"{type(module).__name__} holds batch norms of its own; put them into the branch itself")
    weight, bias = module.kernel()
    kernel = Kernel(weight, bias if spec.bias else torch.zeros_like(bias))
    return LinearOp(kernel, spec.stride, spec.dilation, spec.groups)


def run(stage: nn.Module, x: Tensor, pads: Pads | None, padding_mode: str) -> Tensor:
    """A stage on x, padded before: as the convolution that is read of it, or itself where it may be something else."""
    if is_read_stage(stage):
        return _op_of(stage, x.shape[1], x).apply(x, pads, padding_mode)
    return stage(x if pads is None else pad(x, pads, padding_mode))


def _fits(bn: BatchNorm, ndim: int) -> bool:
    """Whether a batch norm accepts inputs of this many spatial axes."""
    return all(axes == ndim for axes, kind in NORM.items() if isinstance(bn, kind))


def normalise(
    bn: BatchNorm, x: Tensor, ring: Pads = (), used: dict[BatchNorm, tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """Applies `bn` to x; batch statistics are those of x without its ring."""
    if any(map(any, ring)) and uses_batch_stats(bn) and not is_read(bn):
        raise NotLinearError(
            f"{why_hooked(bn) or why_not_read(bn)}; before a k x k convolution its statistics leave out the ring of "
            "the padding, which only this library's own batch norm does"
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
