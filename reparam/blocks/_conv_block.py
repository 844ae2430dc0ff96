"""A block that takes what a convolution takes, and options of its own: the base of the papers' blocks."""

from __future__ import annotations

from dataclasses import InitVar
from inspect import Parameter, getattr_static, isfunction, signature
from typing import Any

import torch

from ..algebra._spec import ConvSpec
from ..bn._norm import NormChoice
from ..branches._geometry import Mode, Number, Outputs, Padding, Sizes
from ._arguments import Arguments, argument
from ._block import BranchFactory, Fold, ReparamBlock


def _is_static(block: type[ConvBlock]) -> bool:
    """Whether the `design` of a block sees no attributes, and is called with the spec alone."""
    return not isfunction(getattr_static(block, "design"))


def _keywords_of_design(block: type[ConvBlock]) -> dict[str, Parameter]:
    """What the `design` of a block takes beside the spec."""
    before = 1 if _is_static(block) else 2  # the spec, or self and the spec
    taken = list(signature(block.design).parameters.values())[before:]
    open_ended = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    return {p.name: p.replace(kind=Parameter.KEYWORD_ONLY) for p in taken if p.kind not in open_ended}


class ConvBlock(Arguments, ReparamBlock):
    """The base of the papers' blocks: takes what `nn.Conv2d` takes, and builds its branches by `design`.

    A block of one's own is a class with one annotated attribute per option, as a dataclass has them, and a `design`,
    which reads them of `self`. They are arguments of the constructor then, for Python and for type checkers. Annotated
    once more, or only assigned, an argument has another default: `sum_bn = True`.

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
        fold: as in `ReparamBlock`.
        sum_bn: whether a batch norm follows the sum, or a callable that makes one. By default there is one if the
            paper has it.

    Raises:
        SpecError: for a geometry that no convolution has.
        OptionError: for an option that the block does not have.

    Example:
        >>> from functools import partial
        >>> from reparam import ConvBranch
        >>> class Several(ConvBlock):
        ...     count: int = 3
        ...     def design(self, spec):
        ...         return [ConvBranch] * self.count
        >>> len(Several(3, 16, stride=2, count=4).branches)
        4
    """

    in_channels: Number = argument(kw_only=False)
    out_channels: Outputs = argument(default=None, kw_only=False)
    kernel_size: Sizes = argument(default=3, kw_only=False)
    stride: Sizes = argument(default=1, kw_only=False)
    padding: Padding = argument(default=None, kw_only=False)
    dilation: Sizes = argument(default=1, kw_only=False)
    groups: Number = argument(default=1, kw_only=False)
    bias: InitVar[bool] = argument(default=True, kw_only=False)
    padding_mode: Mode = argument(default="zeros", kw_only=False)
    device: InitVar[torch.device | str | None] = argument(default=None, kw_only=False)
    dtype: InitVar[torch.dtype | None] = argument(default=None, kw_only=False)
    ndim: InitVar[int] = 2
    fold: Fold = "auto"
    sum_bn: InitVar[NormChoice] = False

    def design(self, spec: ConvSpec) -> list[BranchFactory]:
        """The branches that the paper gives a block of this spec and of the options that `self` holds."""
        raise NotImplementedError

    @classmethod
    def planned(cls, spec: ConvSpec, **options: Any) -> list[BranchFactory]:
        """The branches of a block of this spec and these options, before any of them is built."""
        usual = {name: parameter.default for name, parameter in cls.options().items()}
        return cls.__new__(cls)._designed(spec, {**usual, **options})

    @classmethod
    def options(cls) -> dict[str, Parameter]:
        """What the constructor takes beside the arguments that every block has."""
        return {name: value for name, value in cls.arguments().items() if name not in ConvBlock._declared}

    @classmethod
    def arguments(cls) -> dict[str, Parameter]:
        """What the constructor takes, by name; keyword arguments of a `design` are options, too."""
        taken = super().arguments()
        if _is_static(cls):  # and cannot read the options that a base declares
            taken = {name: value for name, value in taken.items() if name in ConvBlock._declared}
        return {**taken, **_keywords_of_design(cls)}

    def _build(self, **given: Any) -> None:
        spec = ConvSpec(**{name: given.pop(name) for name in ConvSpec.__dataclass_fields__})
        device, dtype, bn, fold = (given.pop(name) for name in ("device", "dtype", "sum_bn", "fold"))
        with torch.empty(
            0, device=device
        ).device:  # torch.get_default_device() of torch 2.5 sees no `with torch.device`
            ReparamBlock.__init__(self, spec, self._designed(spec, given), bn=bn, fold=fold)
        self.to(dtype=dtype)

    def _designed(self, spec: ConvSpec, options: dict[str, Any]) -> list[BranchFactory]:
        told = {name: options[name] for name in _keywords_of_design(type(self))}
        held = {name: value for name, value in options.items() if name not in told}
        self.__dict__.update(held)
        factories = self.design(spec, **told)
        for name in filter(lambda name: callable(held[name]), held):  # done with: a lambda could not be pickled
            del self.__dict__[name]
        return factories
