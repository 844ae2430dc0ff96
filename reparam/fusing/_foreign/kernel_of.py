"""The kernel of any linear module: from a registered function, or read off its own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper

from torch import Tensor, nn

from ...algebra._kernels import Kernel
from ...errors import NotLinearError
from ...modules._guard import why_replaced
from .affine import Affine
from .forms import InferenceForm, Row, form_of
from .reading import Reading, affine_of, check_inside, is_registered, like_of, registered_kernel


class _Open:
    """A function that others may teach further types, as with `functools.singledispatch`."""

    def __init__(self, function: Callable[[nn.Module], Kernel]) -> None:
        update_wrapper(self, function)
        self._function = function
        self.register = registered_kernel.register

    def __call__(self, module: nn.Module) -> Kernel:
        return self._function(module)


@_Open
def kernel_of(module: nn.Module) -> Kernel:
    r"""The kernel of a linear module of anybody's: y = conv(x, W, b).

    Any module works whose forward is affine in its one input: convolutions, linear layers, batch norms in eval mode,
    average pools, and what is built from them by sums, differences, numbers per channel, padding and cropping. The
    kernel is read off the forward itself, so that nothing is assumed of the class. Where the forward cannot be read,
    or to make `fuse` replace modules of a type of one's own, register it in one line; `fuse` calls the function on a
    float64 copy in eval mode:

        kernel_of.register(MyConv)(lambda module: Kernel(module.weight * module.gain, module.bias))

    The geometry of a registered type is its `spec`, a `ConvSpec`, or its stride, padding, dilation and groups, as
    `nn.Conv2d` has them. Of the known blocks with an activation or a gate (timm's, RepVGG's, MobileOne's, DBB's, ...)
    it is the kernel of the convolution in front of these.

    Args:
        module: in eval mode, or without batch norms on batch statistics.

    Returns:
        W of shape (out, in / groups, \*size), of a linear layer (out, in), and b of shape (out,); differentiable, in
        the dtype of the parameters.

    Raises:
        NotLinearError: if it is not affine in its input, or its forward cannot be read.
        StatisticsError: if a batch norm inside uses batch statistics.

    Example:
        >>> import torch
        >>> conv, bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        >>> pair = nn.Sequential(conv, bn).eval()
        >>> x = torch.rand(1, 3, 9, 9)
        >>> torch.allclose(torch.nn.functional.conv2d(x, *kernel_of(pair), padding=1), pair(x), atol=1e-6)
        True
    """
    values = linear_parts(module, like_of(module))
    if len(values) > 1:
        names = ", ".join(values)
        raise NotLinearError(f"{type(module).__name__} holds {len(values)} convolutions, not one: {names}")
    (value,) = values.values()
    weight, bias = value.settled().op.kernel
    return Kernel(weight.squeeze(-1) if value.flat else weight, bias)


def linear_parts(module: nn.Module, like: Tensor) -> dict[str, Affine]:
    """What becomes of a module: its convolutions by the name that they get in it, or itself, without a name.

    Raises:
        NotLinearError: if it is not linear, or not known.
    """
    if why := why_replaced(module):
        raise NotLinearError(why)
    form = None if is_registered(module) else form_of(module)
    if form is None:
        return {"": affine_of(module, like)}
    if isinstance(form, Row):
        return {form.conv: _before_activation(form, module, like)}
    return _in_slots(form, module, like)


def _before_activation(row: Row, module: nn.Module, like: Tensor) -> Affine:
    if row.equation is not None:
        check_inside(module)
        return row.equation(module, like)
    return Reading(module, like, [row.then]).into(row.then)


def _in_slots(form: InferenceForm, module: nn.Module, like: Tensor) -> dict[str, Affine]:
    names = [name for slot in form.slots for name in (slot.goes_into(module), slot.source) if name]
    reading = Reading(module, like, names)
    return {slot.conv: reading.take(slot.source).into(slot.goes_into(module)) for slot in form.slots}
