"""Tensors that code computes: not part of the state dict, and computed again whenever one is loaded.

A model that is built on the meta device gets its weights by `load_state_dict(..., assign=True)`, or by `to_empty` and a
plain load. Neither fills buffers outside the state dict: they would stay on meta, or hold uninitialized memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def constant(module: nn.Module, name: str, make: Callable[[], Tensor]) -> None:
    """Give a module a buffer that follows its dtype and device, is not in its state dict, and is right after loading.

    Args:
        module: the module, after `nn.Module.__init__`.
        name: name of the buffer.
        make: computes the buffer on the CPU. The module keeps this callable, so it must be picklable, such as a
            `functools.partial` of a function.
    """
    module.register_buffer(name, make(), persistent=False)
    constants = vars(module).setdefault("_constants", {})
    if not constants:
        module.register_load_state_dict_post_hook(renew)
    constants[name] = make


def renew(module: nn.Module, *_: Any) -> None:
    """Compute the constants of a module again, and those of modules inside it that have no weights of their own."""
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
    """A tensor with the dtype and device of a module: one with the most axes, since norms may have a higher dtype."""
    found = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    return max(found, key=Tensor.dim, default=None)
