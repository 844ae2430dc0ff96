"""Running a model in another precision without changing anything of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._compare import with_tensors
from ._precision import float64_device

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CASTS = (Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double)


class _OneFloat(TorchFunctionMode):
    """Replaces every real dtype that a forward requests by one dtype; else `x.float()` would break a float64 run."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __enter__(self) -> Any:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_default_dtype(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].to(self._dtype)
        kwargs = {key: self._of(value) for key, value in (kwargs or {}).items()}
        return func(*map(self._of, args), **kwargs)

    def _of(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and value in _FLOATS else value


@torch.no_grad()
def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a model on copies of its inputs and restore torch's random state afterwards."""
    args, kwargs = with_tensors((tuple(args), dict(kwargs)), lambda tensor: tensor.detach().clone())
    with _dice_kept():
        return model(*args, **kwargs)


def run_in(dtype: torch.dtype, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Do the same with a model made by `of_dtype`, on inputs in this dtype."""
    with _OneFloat(dtype):
        return run(model, *with_tensors((tuple(args), dict(kwargs)), lambda tensor: _cast(tensor, dtype)))


def of_dtype(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """Cast a model that the caller owns to a real dtype in place, on the CPU if its device lacks float64."""
    return model._apply(lambda tensor: _cast(tensor, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.to(float64_device(tensor.device) if dtype == torch.float64 else tensor.device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def _dice_kept() -> Iterator[None]:
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus):
        yield
