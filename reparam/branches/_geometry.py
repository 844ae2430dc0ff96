"""What code that was written for convolutions reads of them, answered by branches and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from ..errors import SpecError

Given = TypeVar("Given")
Kept = TypeVar("Kept")


class FromSpec(Generic[Given, Kept]):
    """An attribute that is read off the spec of a branch, as `nn.Conv2d` has it; it cannot be set.

    `Given` is what a constructor takes for it, which type checkers learn from `__set__`; `Kept` is what is read.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, branch: Any, owner: type | None = None) -> Kept:
        return self if branch is None else getattr(branch.spec, self.name)  # type: ignore[return-value]  # read of a class

    def __set__(self, branch: Any, value: Given) -> None:
        kind = type(branch).__name__
        raise SpecError(
            f"{self.name}={value!r} cannot be set: the spec of a {kind} is fixed when it is built (here "
            f"{self.name}={getattr(branch.spec, self.name)!r}); build another {kind}"
        )


Number = FromSpec[int, int]
Sizes = FromSpec[int | Sequence[int], tuple[int, ...]]
Padding = FromSpec[int | Sequence[int] | str | None, tuple[int, ...] | str]
Outputs = FromSpec[int | None, int]
Mode = FromSpec[str, str]
