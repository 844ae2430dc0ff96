"""The kernel of any linear module, from a registered function or from its own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper

from torch import Tensor, nn

from ...algebra._affine import the_input
from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp
from ...errors import NotLinearError, check_model
from .blocks import read_block
from .forms import form_of
from .leaves import is_registered, like_of, register
from .reading import Reader


class _Open:
    """A function with `register` for further types, like `functools.singledispatch`."""

    def __init__(self, function: Callable[[nn.Module], Kernel]) -> None:
        update_wrapper(self, function)
        self._function = function
        self.register = register

    def __call__(self, module: nn.Module) -> Kernel:
        return self._function(module)


@_Open
def kernel_of(module: nn.Module) -> Kernel:
    r"""Compute the kernel of any linear module: y = conv(x, W, b).

    It works for every module whose forward is affine in its one input: convolutions, linear layers, batch norms in eval
    mode, average pools, and combinations of these by sums, differences, factors per channel, padding and cropping. The
    kernel is read from the forward itself, so the class does not matter. For the known blocks with an activation or a
    gate (timm's, RepVGG's, MobileOne's, DBB's, ...) it is the kernel of the convolution before these.

    If a forward cannot be read, or if `fuse` should replace modules of your own type, register the type in one line:

        kernel_of.register(MyConv)(lambda module: Kernel(module.weight * module.gain, module.bias))

    `fuse` calls this function on a float64 copy in eval mode. The geometry of a registered type comes from its `spec`,
    a `ConvSpec`, or from its attributes stride, padding, dilation and groups, as in `nn.Conv2d`.

    Args:
        module: a module in eval mode, or without batch norms on batch statistics.

    Returns:
        W of shape (out, in / groups, \*size), or (out, in) for a linear layer, and b of shape (out,); differentiable,
        in the dtype of the parameters.

    Raises:
        NotLinearError: if the module is not affine in its input, or its forward cannot be read.
        StatisticsError: if a batch norm inside uses batch statistics.

    Example:
        >>> import torch
        >>> conv, bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        >>> pair = nn.Sequential(conv, bn).eval()
        >>> x = torch.rand(1, 3, 9, 9)
        >>> torch.allclose(torch.nn.functional.conv2d(x, *kernel_of(pair), padding=1), pair(x), atol=1e-6)
        True
    """
    check_model(module)
    values = linear_parts(module, like_of(module))
    if len(values) > 1:
        names = ", ".join(values)
        raise NotLinearError(f"{type(module).__name__} holds {len(values)} convolutions, not one: {names}")
    (value,) = values.values()
    weight, bias = value.kernel
    return Kernel(weight.squeeze(-1) if value.flat else weight, bias)


def linear_parts(module: nn.Module, like: Tensor) -> dict[str, LinearOp]:
    """The convolutions of a module by the names that they get in it; one with an empty name is the whole module.

    Raises:
        NotLinearError: if the module is not linear, or not known.
    """
    reader = Reader(like)
    form = None if is_registered(module) else form_of(module)
    if form is not None and (block := read_block(module, module, form, reader)) is not None:
        return dict(block.values)
    return {"": reader.apply(module, the_input(like))}
