"""The base class of the papers' blocks, which takes the arguments of a convolution and further options."""

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
    """Whether the `design` of a block is a static method, which gets the spec and no attributes."""
    return not isfunction(getattr_static(block, "design"))


def _keywords_of_design(block: type[ConvBlock]) -> dict[str, Parameter]:
    """The arguments of a block's `design` besides the spec."""
    before = 1 if _is_static(block) else 2  # the spec, or self and the spec
    taken = list(signature(block.design).parameters.values())[before:]
    open_ended = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
    return {p.name: p.replace(kind=Parameter.KEYWORD_ONLY) for p in taken if p.kind not in open_ended}


class ConvBlock(Arguments, ReparamBlock):
    """The base class of the papers' blocks: it takes the arguments of `nn.Conv2d` and gets its branches from `design`.

    To write your own block, derive from this class, annotate one attribute per option, as in a dataclass, and define
    `design`, which reads the options from `self`. The attributes become arguments of the constructor, for Python and
    for type checkers. To change the default of an inherited argument, assign it: `sum_bn = True`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; None means `in_channels`.
        kernel_size: taps per axis.
        stride: step of the output grid, in pixels of the input.
        padding: pixels on both sides, "same", "valid", or None for "the same size at stride 1".
        dilation: distance between two taps, in pixels.
        groups: number of independent channel groups.
        bias: whether the sum has a bias; if not, the biases of the branches are subtracted.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: device of the parameters.
        dtype: dtype of the parameters.
        ndim: number of spatial axes, 1, 2 or 3.
        fold: as in `ReparamBlock`.
        sum_bn: whether a batch norm follows the sum, or a callable that makes one. By default there is one if the
            paper has one.

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
        """Return the branches of a block with this spec and with the options in `self`."""
        raise NotImplementedError

    @classmethod
    def planned(cls, spec: ConvSpec, **options: Any) -> list[BranchFactory]:
        """The branch factories of a block with this spec and these options; nothing is built."""
        usual = {name: parameter.default for name, parameter in cls.options().items()}
        return cls.__new__(cls)._designed(spec, {**usual, **options})

    @classmethod
    def options(cls) -> dict[str, Parameter]:
        """The arguments of the constructor besides those that every block has."""
        return {name: value for name, value in cls.arguments().items() if name not in ConvBlock._declared}

    @classmethod
    def arguments(cls) -> dict[str, Parameter]:
        """The arguments of the constructor by name; keyword arguments of `design` are options too."""
        taken = super().arguments()
        if _is_static(cls):  # it cannot read the options of a base class
            taken = {name: value for name, value in taken.items() if name in ConvBlock._declared}
        return {**taken, **_keywords_of_design(cls)}

    def _build(self, **given: Any) -> None:
        spec = ConvSpec(**{name: given.pop(name) for name in ConvSpec.__dataclass_fields__})
        device, dtype, bn, fold = (given.pop(name) for name in ("device", "dtype", "sum_bn", "fold"))
        # torch.get_default_device() of torch 2.5 does not see `with torch.device(...)`
        with torch.empty(0, device=device).device:
            ReparamBlock.__init__(self, spec, self._designed(spec, given), bn=bn, fold=fold)
        self.to(dtype=dtype)

    def _designed(self, spec: ConvSpec, options: dict[str, Any]) -> list[BranchFactory]:
        told = {name: options[name] for name in _keywords_of_design(type(self))}
        held = {name: value for name, value in options.items() if name not in told}
        self.__dict__.update(held)
        factories = self.design(spec, **told)
        for name in filter(lambda name: callable(held[name]), held):  # used up; a lambda cannot be pickled
            del self.__dict__[name]
        return factories
