"""The device for float64 work, and float32 work at full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import chain
from threading import RLock
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_WITHOUT_FLOAT64 = {"mps"}
"""Device types without float64; their tensors move to the CPU for it."""


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its device has no float64; differentiable."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)


def rounded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor rounded to the dtype of another, then moved to its device; differentiable."""
    return tensor.to(other.dtype).to(other.device)


def module_in_float64(module: ModuleT) -> ModuleT:
    """Convert a module to float64 in place, on the CPU if one of its devices has no float64."""
    tensors = chain(module.parameters(), module.buffers())
    return (module if all(has_float64(tensor.device) for tensor in tensors) else module.cpu()).double()


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 work on tensors of `device`: the same one, or the CPU."""
    return torch.device("cpu") if not has_float64(device) else device


def sum_in_float64(tensor: Tensor, dim: int) -> Tensor:
    """Sum over an axis, in float64 if the device has it, else pairwise in the tensor's dtype; returns float64."""
    if not has_float64(tensor.device):
        return in_float64(tensor.sum(dim))  # moves the small sum, not the large tensor
    return tensor.sum(dim, dtype=torch.float64)


def has_float64(device: torch.device) -> bool:
    """Whether a device has float64."""
    return device.type not in _WITHOUT_FLOAT64


class _Setting(NamedTuple):
    """A switch of torch that lets float32 products lose digits."""

    holder: Any
    name: str
    now: Any
    """Its present value, or the value that makes it follow its parent again."""
    exact: Any


_LOCK = RLock()  # the switches are global, and other devices may run a backward pass in another thread


@contextmanager
def all_digits() -> Iterator[None]:
    """Keep all digits of float32 products inside the context: no TF32 on a GPU, no bfloat16 on a CPU.

    Compilers cannot trace it; use `with_all_digits` there. Float64 products do not need it.
    """
    with _LOCK:
        legacy = _legacy()
        settings = _settings(also_exact=legacy != "highest")  # restoring `legacy` would change them all
        try:
            if legacy != "highest":
                torch.set_float32_matmul_precision("highest")
            for one in settings:
                setattr(one.holder, one.name, one.exact)
            yield
        finally:
            if legacy != "highest":
                torch.set_float32_matmul_precision(legacy)
            for one in settings:
                setattr(one.holder, one.name, one.now)


def with_all_digits(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function run under `all_digits`, also when it is compiled.

    The function becomes one custom operation for compilers, which find its output shapes by running it on fake tensors.

    Args:
        schema: the types of its arguments and results, in torch's notation.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def exact(*args: Any) -> Any:
            with all_digits():
                return function(*args)

        name = f"reparam::{function.__name__.strip('_')}"
        operation = torch.library.custom_op(name, exact, mutates_args=(), schema=schema)
        operation.register_fake(function)
        return lambda *args: (operation if torch.compiler.is_compiling() else exact)(*args)

    return decorate


def _legacy() -> str:
    """The precision of matrix products; torch raises if only its newer switches were set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _settings(also_exact: bool) -> list[_Setting]:
    """The switches that are on, or all of them."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        return [_Setting(cudnn, "allow_tf32", cudnn.allow_tf32, False)]
    parents: list[tuple[Any, list[Any]]] = [
        (cudnn, [torch.backends.cuda.matmul, cudnn.conv]),
        (mkldnn, [mkldnn.matmul, mkldnn.conv]),  # type: ignore[attr-defined]  # torch's own stubs lack them
    ]
    found = []
    for parent, children in parents:
        for child in children:
            if (now := child.fp32_precision) not in ("none", "ieee") or also_exact:
                back = "none" if now == parent.fp32_precision else now
                found.append(_Setting(child, "fp32_precision", back, "ieee"))
    return found
