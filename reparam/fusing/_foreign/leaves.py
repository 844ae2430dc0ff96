"""Modules that are read as a whole: layers of torch, norms, and modules of registered types."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ...algebra._kernels import Kernel
from ...algebra._linear import LinearOp, conv_op, linear_op
from ...algebra._spec import ConvSpec
from ...branches import Branch
from ...errors import NotLinearError, SpecError
from ...modules._guard import why_hooked, why_replaced
from .equations import equation_of
from .trace import is_any_norm, is_torch_layer

_GEOMETRY = ("stride", "padding", "dilation", "groups")
_REGISTERED: dict[type, Callable[[Any], Kernel]] = {}
"""The kernels of registered types; see `kernel_of`."""


def register(kind: type) -> Callable[[Callable[[Any], Kernel]], Callable[[Any], Kernel]]:
    """Register a function that computes the kernel of modules of a type, for `fuse` and for branches."""

    def known(function: Callable[[Any], Kernel]) -> Callable[[Any], Kernel]:
        _REGISTERED[kind] = function
        linear_op.register(kind, lambda module, channels, like: registered_op(module))
        return function

    return known


def registered_kernel(module: nn.Module) -> Callable[[Any], Kernel] | None:
    """The function that is registered for the type of a module, or None."""
    return next((_REGISTERED[base] for base in type(module).__mro__ if base in _REGISTERED), None)


def is_registered(module: nn.Module) -> bool:
    """Whether a kernel is registered for this type."""
    return registered_kernel(module) is not None


def registered_op(module: Any) -> LinearOp:
    kernel = Kernel(*registered_kernel(module)(module))  # type: ignore[misc]  # it is registered
    if isinstance(getattr(module, "spec", None), ConvSpec):
        return op_of_spec(kernel, module.spec)
    missing = [name for name in _GEOMETRY if not hasattr(module, name)]
    if missing:
        raise SpecError(
            f"{type(module).__name__} is registered with kernel_of, but has no {', '.join(missing)}; give it these "
            "attributes of nn.Conv2d, or an attribute `spec` with a ConvSpec"
        )
    stride, padding, dilation, groups = (getattr(module, name) for name in _GEOMETRY)
    return conv_op(*kernel, stride, padding, dilation, groups, getattr(module, "padding_mode", "zeros"))


def op_of_spec(kernel: Kernel, spec: ConvSpec) -> LinearOp:
    kernel = kernel if spec.bias else Kernel(kernel.weight, torch.zeros_like(kernel.bias))
    pads = spec.pads if any(map(any, spec.pads)) else ()
    return LinearOp(kernel, spec.stride, spec.dilation, spec.groups, pads, spec.padding_mode)


def like_of(module: nn.Module) -> Tensor:
    """An empty tensor on the device of a module, in the highest precision in it."""
    found = [tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()]
    if found:
        return found[0].new_empty(0, dtype=reduce(torch.promote_types, (tensor.dtype for tensor in found)))
    raise NotLinearError(f"{type(module).__name__} has no parameters, so there is nothing to fuse")


def check_inside(module: nn.Module) -> None:
    """Check that the modules inside a module run the forward of their class, because they are read by name.

    Raises:
        NotLinearError: if a module inside has hooks or another forward; it is named.
    """
    for name, inner in module.named_modules():
        if why := (why_hooked(inner) if name else None) or why_replaced(inner):
            raise NotLinearError(f"{name!r}: {why}")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is read as a whole."""
    whole = is_any_norm(module) or is_torch_layer(module) or equation_of(module) is not None
    return whole or is_registered(module) or isinstance(module, Branch)
