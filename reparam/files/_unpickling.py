"""Reads files of torch: tensors and plain values. Any other object becomes an empty stand-in; nothing is executed."""

from __future__ import annotations

import pickle
import re
import sys
import warnings
from collections import OrderedDict
from typing import Any, BinaryIO

import torch

_MOST_NAMES = 200
"""How many different classes and functions a file may name."""
_PLAIN = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "functools", "pathlib", "uuid"}
_PLAIN_BUILTINS = {"Ellipsis", "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range"}
_PLAIN_BUILTINS |= {"slice", "str", "tuple"}
"""The parts of Python itself that files hold as data. Anything else of Python that a file names would run code."""


class StandIn(dict[Any, Any]):
    """Stands in for an object whose class is not imported: it stores the object's state and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"an object of {type(self).__module__}.{type(self).__qualname__}"

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key, which a dict may not
    __eq__ = object.__eq__


class _StandInDict:
    """Stands in for an object of a subclass of dict, so that its items are read."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _StandInList:
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


_KINDS = {"Can only SETITEM": _StandInDict, "Can only append": _StandInList, "Can only extend": _StandInList}


def load(file: BinaryIO) -> Any:
    """What `torch.load` reads with its restricted unpickler, with stand-ins for the classes that it refuses.

    Raises:
        pickle.UnpicklingError: if the file names something that is not data, such as functions of Python itself.
    """
    names: dict[str, type] = {}
    while True:
        file.seek(0)
        try:
            stand_ins: Any = [_named(name, kind) for name, kind in names.items()]
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # about pickle protocols, and about sparse tensors, which are refused later
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            learned = _learned(str(error), names)
            if learned is None or len(names) == _MOST_NAMES:
                raise
            names |= learned


def _learned(error: str, names: dict[str, type]) -> dict[str, type] | None:
    """The stand-in for the name that was refused, or the kind that it must be; None if it may not be read."""
    if refused := re.search(r"Unsupported global: GLOBAL (\S+) was not", error):
        name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"  # which torch leaves out
        return {name: StandIn} if name not in names and _is_data(name) else None
    kind = next((kind for start, kind in _KINDS.items() if start in error), None)
    got = re.search(r"but got <class '([^']+)'>", error)
    if kind and got and names.get(got[1]) is StandIn:
        return {got[1]: kind}
    return None


def _is_data(name: str) -> bool:
    module, _, rest = name.partition(".")
    if module == "builtins":
        return rest in _PLAIN_BUILTINS
    if module == "torch" and rest.rpartition(".")[2].startswith("_"):  # it makes tensors, which no stand-in can
        return False
    return module not in sys.stdlib_module_names or module in _PLAIN or name == "types.SimpleNamespace"


def _named(name: str, kind: type) -> type:
    """A class that the unpickler takes for the one of this name."""
    module, _, rest = name.rpartition(".")
    return type(rest, (kind,), {"__module__": module})
