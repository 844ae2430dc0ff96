"""Find identical branches: the same algebra with different parameter values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra._spec import ConvSpec
from ..bn._norm import is_norm
from ..branches import Branch

Place = tuple[Any, str]
"""A module's dict of parameters or buffers, and a name in it."""

_EQUAL = (int, float, str, type(None), torch.dtype, torch.device, type, ConvSpec)
"""Types of attributes that are compared by value; all others count as identical only if they are the same object."""
_NO_MATTER = {"_recipe", "_constants", "_inside", "_kept", "_share", "_fold", "drawn_as"} | set(vars(nn.Module())) - {
    "training"
}
"""Attributes that do not affect the kernel, or that are compared elsewhere."""


def look(branch: nn.Module) -> Hashable:
    """Everything that determines the algebra of a branch, except its parameter values."""
    return tuple(
        (type(module), *_attributes(module), *((name, t.shape, t.dtype, t.device) for name, t in _own_tensors(module)))
        for module in branch.modules()
    )


def _attributes(module: nn.Module) -> Iterator[Hashable]:
    for name, value in sorted(vars(module).items()):
        if name not in _NO_MATTER:
            yield name, _comparable(value)


def _comparable(value: Any) -> Hashable:
    if isinstance(value, (tuple, list)):
        return tuple(map(_comparable, value))
    return (type(value), value) if isinstance(value, _EQUAL) else id(value)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that the kernel depends on."""
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None and not (name == "num_batches_tracked" and is_norm(module)) and name != "like":
                yield name, tensor


def places_in(branch: Branch) -> list[Place]:
    """The places of these tensors in the modules inside, for looking them up in every step."""
    return [
        (module._parameters if name in module._parameters else module._buffers, name)
        for module in branch.modules()
        for name, _ in _own_tensors(module)
    ]


def is_all_here(tensor: Tensor) -> bool:
    """Whether all values of a tensor are in this process: it is not a shard, and its memory was not released."""
    there = tensor.is_meta or tensor.untyped_storage().nbytes() > 0 or not tensor.numel()
    return type(tensor) in (Tensor, nn.Parameter) and there
