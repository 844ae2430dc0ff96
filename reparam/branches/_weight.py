"""Why a branch has no `weight` and no `bias`, although it is equal to a convolution.

What reads them of a convolution nearly always goes on to write: an initialisation, pruning, an optimizer's groups. A
kernel that is computed would take the write and lose it; on batch statistics there is none to be computed; and a
parameter under a second name would be counted twice. So there is nothing, `hasattr` says so, and the error names what
there is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAMES = ("weight", "bias")


class WithoutWeight(nn.Module):
    """A module that says, where a convolution's `weight` or `bias` is asked for and it has none, what to ask for."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        modules = self.__dict__.get("_modules", ())  # first, as a forward asks for little else; torch looks here last
        if name in modules:
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _NAMES:
                raise
            raise AttributeError(why_none(self, name)) from None  # not by a property, whose message torch drops


def refuse_to_set(module: nn.Module, name: str, value: Any) -> None:
    """Refuses a `weight` or `bias` that nothing would use.

    Raises:
        AttributeError: for these names.
    """
    if name in _NAMES:
        raise AttributeError(f"cannot set {name} to {type(value).__name__}: {why_none(module, name)}")


def why_none(module: nn.Module, name: str) -> str:
    """What the error says."""
    kind = type(module).__name__
    return (
        f"{kind} has no {name}: it is computed from the parameters of the branches. to_conv().{name} is that of the "
        f"convolution which the {kind} equals, and kernel() has the gradients; parameters() tell dtype and device, and "
        f"reset_parameters() initialises. Code that looks for a {name} passes over it with hasattr(module, {name!r})"
    )
