"""The device on which a training step is measured, and how it runs there."""

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
"""The devices that an error suggests instead of a missing one."""


@dataclass(frozen=True)
class Setting:
    """The device to measure on, and how a network runs there.

    Args:
        device: the name of the device, such as "cpu", "cuda" or "mps".
        compiled: whether to compile each network into one graph with `torch.compile`; needs torch 2.13 or newer.
        autocast: whether to run under autocast to bfloat16.

    Raises:
        SpecError: if the device is not available.

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
                f"measuring needs a device of this machine, but got device={self.device!r} ({why}); available: {there}"
            )

    def measured_on(self) -> dict[str, str | int]:
        """Describe what the figures depend on: the device and its name, torch and its threads, the dtype, the mode."""
        named = getattr(_module(self.device), "get_device_name", None)  # accelerators have it
        return {
            "device": self.device,
            "name": named() if named else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "dtype": "bfloat16 (autocast)" if self.autocast else "float32",
            "mode": "compiled" if self.compiled else "eager",
        }

    def seconds(self, run: Callable[[], object]) -> float:
        """Measure the time of a function, until the device has finished everything that it launched."""
        return seconds(run, self.device)

    def forward(self, module: nn.Module, *, compiled: bool | None = None) -> Callable[[Tensor], Tensor]:
        """Return the module's forward in this setting, compiled at the first call; `compiled` overrides that."""
        run: Callable[[Tensor], Tensor] = module
        if self.compiled if compiled is None else compiled:
            # Isolated from each other: blocks share the code of one forward, whose recompilations torch limits.
            options: dict[str, Any] = {"isolate_recompiles": True}  # not yet in torch's type hints
            run = torch.compile(module, fullgraph=True, dynamic=False, **options)
        device_type = torch.device(self.device).type

        def forward(x: Tensor) -> Tensor:
            with torch.autocast(device_type, torch.bfloat16) if self.autocast else nullcontext():
                return run(x)

        return forward


def _module(device: str) -> Any:
    """`torch.cpu`, `torch.cuda` or the module of another device."""
    return torch.get_device_module(torch.device(device).type)


def _why_not(device: str) -> str | None:
    """Why nothing can be timed on a device, in one line; None if it can."""
    try:
        torch.empty(0, device=device)
        _module(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        return str(error).partition("\n")[0].partition(". ")[0]
    return None
