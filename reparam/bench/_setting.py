"""Where and how a training step is measured."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._timing import seconds
from ..errors import SpecError

_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""To be named to who asked for another."""


@dataclass(frozen=True)
class Setting:
    """A device, and how a network runs on it.

    Args:
        device: its name, such as "cpu", "cuda" or "mps".
        compiled: whether networks go through `torch.compile`, each into one graph; torch 2.13 or newer does that.
        autocast: whether they run under autocast to bfloat16.

    Raises:
        SpecError: for a device that is not there.

    Example:
        >>> from reparam.bench import Setting
        >>> Setting("cpu", autocast=True).measured_on()["dtype"]
        'bfloat16 (autocast)'
    """

    device: str = "cpu"
    compiled: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        if why := _why_not(self.device):
            there = ", ".join(name for name in _DEVICES if not _why_not(name))
            raise SpecError(
                f"a device of this machine is needed to measure on, but got device={self.device!r} ({why}); "
                f"there is: {there}"
            )

    def measured_on(self) -> dict[str, str | int]:
        """What figures depend on: the device and its name, torch and its threads, the dtype and the mode."""
        named = getattr(_module(self.device), "get_device_name", None)  # of accelerators
        return {
            "device": self.device,
            "name": named() if named else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "dtype": "bfloat16 (autocast)" if self.autocast else "float32",
            "mode": "compiled" if self.compiled else "eager",
        }

    def seconds(self, run: Callable[[], object]) -> float:
        """Time that a function takes, until the device has done all that it was told."""
        return seconds(run, self.device)

    def forward(self, module: nn.Module, *, compiled: bool | None = None) -> Callable[[Tensor], Tensor]:
        """The module's forward in this setting, compiled at the first call; or uncompiled if told so."""
        run: Callable[[Tensor], Tensor] = module
        if self.compiled if compiled is None else compiled:
            # Apart from one another: they share the code of one forward, whose recompilations torch limits.
            options: dict[str, Any] = {"isolate_recompiles": True}  # which torch's types do not name yet
            run = torch.compile(module, fullgraph=True, dynamic=False, **options)
        device_type = torch.device(self.device).type

        def forward(x: Tensor) -> Tensor:
            with torch.autocast(device_type, torch.bfloat16) if self.autocast else nullcontext():
                return run(x)

        return forward


def _module(device: str) -> Any:
    """`torch.cpu`, `torch.cuda` and their kin."""
    return torch.get_device_module(torch.device(device).type)


def _why_not(device: str) -> str | None:
    """Why nothing can be timed on it, in a line, or None if it can."""
    try:
        torch.empty(0, device=device)
        _module(device)
    except (RuntimeError, AssertionError) as error:  # the second of a torch that was built without CUDA
        return str(error).partition("\n")[0].partition(". ")[0]
    return None
