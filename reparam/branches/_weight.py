"""Why a branch has no `weight` and no `bias`, although it equals a convolution.

Code that reads them from a convolution nearly always writes to them next: initialization, pruning, parameter groups. A
write to a computed kernel would be lost, on batch statistics there is no kernel to compute, and a parameter with a
second name would be counted twice. So the attributes do not exist, `hasattr` returns False, and the error names the
alternatives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAMES = ("weight", "bias")


class WithoutWeight(nn.Module):
    """A module without a convolution's `weight` and `bias`, whose AttributeError names the alternatives."""

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        modules = self.__dict__.get("_modules", ())  # first, since a forward needs little else; torch looks here last
        if name in modules:
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _NAMES:
                raise
            raise AttributeError(why_none(self, name)) from None  # torch would drop the message of a property


def refuse_to_set(module: nn.Module, name: str, value: Any) -> None:
    """Refuse to set a `weight` or `bias`, which nothing would use.

    Raises:
        AttributeError: for these two names.
    """
    if name in _NAMES:
        raise AttributeError(f"cannot set {name} to {type(value).__name__}: {why_none(module, name)}")


def why_none(module: nn.Module, name: str) -> str:
    """The text of the error."""
    kind = type(module).__name__
    return (
        f"{kind} has no {name}: it is computed from the parameters of the branches. to_conv().{name} is that of the "
        f"convolution which equals the {kind}, and kernel() returns it with gradients. Use parameters() for dtype and "
        f"device, reset_parameters() to initialize, and hasattr(module, {name!r}) to skip modules without a {name}"
    )
