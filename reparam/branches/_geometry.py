"""The attributes of a convolution, such as `in_channels`, on branches and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from ..errors import SpecError

Given = TypeVar("Given")
Kept = TypeVar("Kept")


class FromSpec(Generic[Given, Kept]):
    """A read-only attribute of `nn.Conv2d` whose value comes from the spec of a branch.

    `Given` is the type that a constructor takes, which type checkers learn from `__set__`; `Kept` is the type of the
    attribute.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, branch: Any, owner: type | None = None) -> Kept:
        return self if branch is None else getattr(branch.spec, self.name)  # type: ignore[return-value]  # read of a class

    def __set__(self, branch: Any, value: Given) -> None:
        kind = type(branch).__name__
        raise SpecError(
            f"{self.name}={value!r} cannot be set: the spec of a {kind} is fixed when it is built (here "
            f"{self.name}={getattr(branch.spec, self.name)!r}); build a new {kind} instead"
        )


Number = FromSpec[int, int]
Sizes = FromSpec[int | Sequence[int], tuple[int, ...]]
Padding = FromSpec[int | Sequence[int] | str | None, tuple[int, ...] | str]
Outputs = FromSpec[int | None, int]
Mode = FromSpec[str, str]
