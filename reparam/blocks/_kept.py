"""Cache the kernel of a block in eval mode until something that it depends on changes.

torch's version counters do not show every change: a write through `.data` does not increment them. So the cache holds
a copy of every parameter and buffer, and each forward compares them value by value, at a small part of the cost of
computing the kernel. On devices other than a CPU, the comparison would wait for the device, so nothing is cached.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..algebra._kernels import Kernel
from ..algebra._spec import ConvSpec
from ..branches import Branch
from ..modules._inside import Inside
from ..numerics._precision import all_digits

_OURS = __name__.partition(".")[0]
_PLAIN = {Tensor, nn.Parameter, type(None)}


def may_be_kept(x: Tensor) -> bool:
    """Whether this forward runs on plain tensors on a CPU, without gradients, and is not being traced."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or type(x) not in _PLAIN
        or x.device.type != "cpu"
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or _get_current_dispatch_mode() is not None
    )


class KeptKernel:
    """The cached kernel of one block and everything it depends on; copies and pickles of the block start without it."""

    def __init__(self) -> None:
        self.last: _Kept | None = None

    def __reduce__(self) -> tuple[type[KeptKernel], tuple[()]]:
        return type(self), ()

    def of(self, block: Branch, inside: Inside, compute: Callable[[], Kernel]) -> Kernel:
        """The kernel of the block, computed again if anything has changed."""
        last = self.last
        if last is not None and last.is_current(block, inside):
            return last.kernel
        with all_digits():  # a later forward may be under it
            kernel = compute()
        self.last = _kept(block, inside, kernel)
        return kernel

    def drop(self) -> None:
        """Drop the kernel and free its memory."""
        if not torch.compiler.is_compiling():  # a compiler would guard it
            self.last = None


class _Kept(NamedTuple):
    spec: ConvSpec
    kinds: list[type]
    """The type of each module inside."""
    attributes: list[tuple[Any, ...]]
    """The attributes of each module inside, such as the eps of a norm, and its dicts of tensors, children and hooks."""
    tensors: list[Tensor | None]
    """Copies of all tensors in the block."""
    kernel: Kernel

    def is_current(self, block: Branch, inside: Inside) -> bool:
        """Whether the kernel would be computed from the same values."""
        return (
            block.spec is self.spec
            and [*map(type, inside.modules)] == self.kinds
            and all(map(same_attributes, map(vars, inside.modules), self.attributes))
            and _same_tensors(_tensors(block, inside), self.tensors)
        )


def _kept(block: Branch, inside: Inside, kernel: Kernel) -> _Kept | None:
    """The cache entry of a kernel, or None if the kernel may depend on more than is compared here."""
    kinds, tensors = [*map(type, inside.modules)], _tensors(block, inside)
    attributes = [tuple(vars(module).values()) for module in inside.modules]
    known = all(kind.__module__.startswith(("torch.nn.modules.", f"{_OURS}.")) for kind in kinds)
    replaced = any(isinstance(value, FunctionType) for values in attributes for value in values)
    if not known or replaced or {*map(type, tensors)} - _PLAIN:
        return None
    copies = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
    return _Kept(block.spec, kinds, attributes, copies, kernel)


def _tensors(block: Branch, inside: Inside) -> list[Tensor | None]:
    return [
        tensor
        for module in (block, *inside.modules)
        for table in (module._parameters, module._buffers)
        for tensor in table.values()
    ]


def same_attributes(now: dict[str, Any], then: tuple[Any, ...]) -> bool:
    return len(now) == len(then) and all(map(is_, now.values(), then))


def _same_tensors(now: list[Tensor | None], then: list[Tensor | None]) -> bool:
    return len(now) == len(then) and all(map(_same, now, then))


def _same(now: Tensor | None, then: Tensor | None) -> bool:
    if now is None or then is None or type(now) not in _PLAIN:
        return now is then
    return now.dtype == then.dtype and now.device == then.device and torch.equal(now, then)
