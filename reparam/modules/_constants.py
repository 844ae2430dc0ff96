"""Tensors that follow from code: no part of the state dict, and made anew whenever one is loaded.

A model that is built on the meta device gets its weights by `load_state_dict(..., assign=True)`, or by `to_empty` and a
plain load. Neither reaches what the state dict does not hold, which would stay on meta, or be what the memory held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def constant(module: nn.Module, name: str, make: Callable[[], Tensor]) -> None:
    """Gives a module a buffer that follows its dtype and device, is not in its state dict, and outlives loading.

    Args:
        module: after `nn.Module.__init__`.
        name: of the buffer.
        make: makes it, on the CPU; it is kept, and must be what pickle takes: `functools.partial` of a function.
    """
    module.register_buffer(name, make(), persistent=False)
    constants = vars(module).setdefault("_constants", {})
    if not constants:
        module.register_load_state_dict_post_hook(renew)
    constants[name] = make


def renew(module: nn.Module, *_: Any) -> None:
    """Makes the constants of a module anew, and of what is inside of it and has no weights to go by, beside its own."""
    like = _weight(module)
    for inner in module.modules():
        if inner is module or _weight(inner) is None:
            for name, make in vars(inner).get("_constants", {}).items():
                old: Tensor = getattr(inner, name)
                place = old if like is None else like
                device = "cpu" if like is None and old.is_meta else place.device
                with torch.device("cpu"):
                    setattr(inner, name, make().to(device, place.dtype))


def _weight(module: nn.Module) -> Tensor | None:
    """A tensor that tells dtype and device of a module: one of most axes, as norms may be of a higher dtype."""
    found = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    return max(found, key=Tensor.dim, default=None)
