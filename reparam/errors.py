"""The errors of this library. All derive from `ReparamError`, and each also from the fitting builtin exception."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

__all__ = [
    "CheckpointError",
    "ExportError",
    "FuseError",
    "NotAModelError",
    "NotLinearError",
    "OptionError",
    "ReparamError",
    "SpecError",
    "StatisticsError",
]


class ReparamError(Exception):
    """Base class of every error that this library raises on purpose."""


class SpecError(ReparamError, ValueError):
    """An argument value that is invalid for a convolution, branch, block or model."""


class OptionError(ReparamError, TypeError):
    """An option that a block or a network does not have."""


class NotLinearError(ReparamError, TypeError):
    """A module without a kernel, because it is not an affine convolution."""


class NotAModelError(ReparamError, TypeError):
    """What every function that takes a model raises if it gets anything but a `torch.nn.Module`."""


class StatisticsError(ReparamError, RuntimeError):
    """A batch norm whose stored statistics cannot be used yet."""


class FuseError(ReparamError, RuntimeError):
    """A model that cannot be fused in its present state; the message says why and what to do."""


class CheckpointError(ReparamError, ValueError):
    """A file or state dict that cannot be used; the message says what was expected and what was found."""


class ExportError(ReparamError, RuntimeError):
    """A network that cannot be exported, or that computes something else after export; nothing was written."""


def check_model(model: Any) -> None:
    """Raise unless it is a `torch.nn.Module`.

    Raises:
        NotAModelError: it is a path, a state dict, a class or anything else; the message says how to get the model.
    """
    from torch import nn  # not above: the help of the command line does not wait for torch

    if isinstance(model, nn.Module):
        return
    got, advice = f"{type(model).__name__} object", "pass the network itself"
    if isinstance(model, (str, os.PathLike)):
        got = f"path {os.fspath(model)!r}"
        advice = "reparam.sr.load_checkpoint(path) and reparam.sr.create_model(name) return networks"
    elif isinstance(model, Mapping):
        advice = "load a state dict into its network with load_state_dict, or fuse it with fuse_state_dict"
    elif isinstance(model, type):
        got, advice = f"class {model.__name__}", f"create an object of it: {model.__name__}(...)"
    raise NotAModelError(f"expected a model (torch.nn.Module), but got the {got}; {advice}")
