"""What the functions that take a model say about anything else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import NotAModelError


def check_model(model: Any) -> None:
    """Raise unless it is a `torch.nn.Module`.

    Raises:
        NotAModelError: it is a path, a state dict, a class or anything else; the message says how to get the model.
    """
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
