"""The base class of branches: linear modules with a spec and a kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra import _kernels as kernels
from ..algebra._kernels import Kernel
from ..algebra._linear import LinearOp
from ..algebra._spec import ConvSpec, Pads
from ..bn._frozen import freeze_as_saved
from ..bn._norm import Norms, norms, why_not_ready
from ..errors import FuseError, NotLinearError, SpecError
from ..folding import cost
from ..modules._constants import constant
from ..modules._guard import altered, is_unaltered
from ..modules._hooks import copy_module
from ..modules._sound import unsound_in
from ..modules._start import fresh_start, remembering
from ..numerics._autocast import as_conv_input
from ..numerics._precision import module_in_float64, rounded_like
from ._geometry import Mode, Number, Outputs, Padding, Sizes
from ._weight import WithoutWeight

ScaleShift = Callable[[Norms, LinearOp, Pads], tuple[Tensor, Tensor]]
"""Returns scale and shift of batch norms, given the operation before them and the ring that is cropped after them."""


class Branch(WithoutWeight, ABC):
    r"""A linear module that equals one convolution: y = conv(x, W, b) in the geometry of `spec`.

    To write your own branch, derive from this class and define `kernel`; `forward` and `to_conv` follow from it.

    For code that expects convolutions, a branch has the read-only attributes `in_channels`, `out_channels`,
    `kernel_size`, `stride`, `padding`, `dilation`, `groups` and `padding_mode`, with the values of `to_conv()`;
    `padding` is "same" if one side gets a pixel more than the other. There is no `weight` and no `bias`: `to_conv()`
    has them.

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
    """Estimated cost of a training step that runs the branch, per output pixel; see `reparam.folding.cost`."""

    like: Tensor
    """An empty buffer with the module's dtype and device, for creating constants."""

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
        self.cost = cost.plain(spec).each
        self._of_kernel = cost.on_kernel(
            "a kernel that is made", cost.shape_of(spec), 3
        )  # a guess at the work in a user's `kernel`
        self._of_run = cost.running()
        if type(self).forward is Branch.forward:
            self._of_run = self._of_run.and_then(self._of_kernel)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        freeze_as_saved(self, local_metadata)  # a resumed run is frozen if it was before
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @abstractmethod
    def kernel(self) -> Kernel:
        """Compute the equivalent kernel, differentiably and in the dtype of the parameters.

        It may have fewer taps than the spec.

        Raises:
            StatisticsError: if a batch norm inside uses batch statistics.
        """

    def kernel_with(self, scale_shift_of: ScaleShift) -> Kernel:
        """Compute the kernel with the scale and shift of batch norms from `scale_shift_of`.

        A branch without batch norms need not define it.
        """
        return self.kernel()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, in_channels, *size) with the kernel."""
        return self.spec.convolve(as_conv_input(x), *self._full(self.kernel()))

    def to_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Compute the `nn.Conv` that equals this module, in float64, and round it once to the module's dtype.

        Returns:
            A new convolution on the same device, with the dtype, memory format and mode of this module. The module is
            not changed.

        Raises:
            FuseError: if a batch norm inside uses batch statistics or never saw a batch, or if a value is not finite.
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
        conv.fused_from = type(self).__name__  # type: ignore[assignment]  # not declared by torch's class
        return conv.train(self.training)

    def problems(self) -> dict[str, str]:
        """Why no convolution equals this module now, by the name of the module inside that prevents it."""
        not_ready = {name: why for name, bn in norms(self) if (why := why_not_ready(bn))}
        return not_ready | unsound_in(self) | altered(self)

    def check_read(self) -> None:
        """Check that the layers run what their weights say.

        Raises:
            NotLinearError: if a layer inside has another forward, a hook or an unknown class; it is named.
        """
        if is_unaltered(self):
            return
        if found := "; ".join(f"{name or 'itself'!r}: {why}" for name, why in altered(self).items()):
            raise NotLinearError(f"{type(self).__name__} has no kernel now: {found}")

    def reset_parameters(self) -> None:
        """Initialize again as the constructor does: the same values for the same seed, and unused statistics.

        Every parameter and buffer stays the same object. Layers that were passed to a `SequentialBranch` are reset by
        their own `reset_parameters`.

        Raises:
            OptionError: if the branch cannot be built again, or was changed after it was built. Then it is unchanged.
            StatisticsError: if a batch norm inside is frozen.
        """
        fresh_start(self)()

    def fuse(self) -> nn.Module:
        """Alias of `to_conv`, with the name that timm's `reparameterize_model` looks for."""
        return self.to_conv()

    def extra_repr(self) -> str:
        return str(self.spec)

    def _full(self, kernel: Kernel) -> Kernel:
        """Check a kernel against the spec, and embed it in all taps of the spec."""
        spec = self.spec
        shape = (spec.out_channels, spec.in_channels // spec.groups)
        if tuple(kernel.weight.shape[:2]) != shape or tuple(kernel.bias.shape) != shape[:1]:
            raise SpecError(
                f"{type(self).__name__}.kernel() returned a weight of shape {tuple(kernel.weight.shape)} and a bias of "
                f"shape {tuple(kernel.bias.shape)}, but its spec needs ({shape[0]}, {shape[1]}, ...) and {shape[:1]}"
            )
        return kernels.embed(kernel, spec.kernel_size)

    def _channels_last(self) -> bool:
        weights = [p for p in self.parameters() if p.dim() == 4]
        return any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in weights)


def made_by(factory: Callable[[ConvSpec], Branch], spec: ConvSpec) -> Branch:
    """Make a branch by calling `factory` with a spec.

    Raises:
        SpecError: if it returns anything but a branch of this spec.
    """
    branch = factory(spec)
    if not isinstance(branch, Branch) or branch.spec != spec:
        came = f"one of {branch.spec}" if isinstance(branch, Branch) else type(branch).__name__
        raise SpecError(f"{factory} must return a branch of the spec ({spec}), but returned {came}")
    return branch
