"""Where float64 work happens, and float32 work of which no digit may be lost."""

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
"""Types of devices that know no float64; their tensors go to the CPU for it."""


def in_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU if its device has none; differentiable."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)


def rounded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor rounded to the dtype of another and taken to its device, in this order; differentiable."""
    return tensor.to(other.dtype).to(other.device)


def module_in_float64(module: ModuleT) -> ModuleT:
    """Turns a module into float64, on the CPU if a device of it has none; in place, as `nn.Module.to`."""
    tensors = chain(module.parameters(), module.buffers())
    return (module if all(has_float64(tensor.device) for tensor in tensors) else module.cpu()).double()


def float64_device(device: torch.device) -> torch.device:
    """Where the float64 work of tensors of a device happens: there, or on the CPU."""
    return torch.device("cpu") if not has_float64(device) else device


def sum_in_float64(tensor: Tensor, dim: int) -> Tensor:
    """Sums over an axis, in float64 where the device knows it, else pairwise in its own dtype; the sum is float64."""
    if not has_float64(tensor.device):
        return in_float64(tensor.sum(dim))  # what is summed may be large, the sum is small to move
    return tensor.sum(dim, dtype=torch.float64)


def has_float64(device: torch.device) -> bool:
    """Whether a device knows float64."""
    return device.type not in _WITHOUT_FLOAT64


class _Setting(NamedTuple):
    """A switch of torch by which float32 products lose digits."""

    holder: Any
    name: str
    now: Any
    """What it is set to, or what makes it follow its parent again."""
    exact: Any


_LOCK = RLock()  # the switches belong to the whole process, in which other devices may run a backward pass of their own


@contextmanager
def all_digits() -> Iterator[None]:
    """While it lasts, float32 products keep all digits: no TF32 on a GPU, no bfloat16 on a CPU, whatever is set.

    A compiler does not see it: see `with_all_digits`. Products of float64 need none of it.
    """
    with _LOCK:
        legacy = _legacy()
        settings = _settings(also_exact=legacy != "highest")  # which setting `legacy` again would change
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
    """Makes a function run under `all_digits`, compiled too.

    For that it becomes one operation to a compiler, which learns its shapes by running it on tensors without values.

    Args:
        schema: types of what it takes and returns, as torch writes them.
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
    """The precision of matrix products; torch refuses to tell where only its newer switches were set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def _settings(also_exact: bool) -> list[_Setting]:
    """The switches that are on, or all."""
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
