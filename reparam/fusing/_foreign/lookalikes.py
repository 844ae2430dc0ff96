"""Modules with a method that says they can be fused."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from ...algebra._linear import linear_op
from .exact import copied_with
from .forms import FORMS
from .trace import is_any_norm, is_torch_layer

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")
_NOT_LINEAR = linear_op.dispatch(object)


def says_it_fuses(module: nn.Module) -> bool:
    """Whether a module has one of the usual methods for fusing, and several linear layers to fuse.

    A module with an activation inside cannot become one layer. It still counts if no part of it has such a method and
    it is not the inference form of a known class.
    """
    if not _has_a_method(module) or not _is_several(module) or _keeps_itself(module):
        return False
    layers = [part for part in module.modules() if is_torch_layer(part) and not is_any_norm(part)]
    if not any(
        linear_op.dispatch(type(layer)) is _NOT_LINEAR and not isinstance(layer, _DropoutNd) for layer in layers
    ):
        return True
    inner = any(_has_a_method(part) for child in module.children() for part in child.modules())
    return not inner and not _is_fused(module)


def _has_a_method(module: nn.Module) -> bool:
    return not is_torch_layer(module) and any(callable(getattr(module, name, None)) for name in _METHODS)


def _is_several(module: nn.Module) -> bool:
    return sum(isinstance(part, (_ConvNd, nn.Linear)) or is_any_norm(part) for part in module.modules()) > 1


def _keeps_itself(module: nn.Module) -> bool:
    """Whether the `fuse` of a class keeps the module in its place, tried on a copy on the meta device."""
    try:
        blank = copied_with(module, lambda tensor: tensor.to("meta"))
        return blank.fuse() is blank
    except Exception:  # a foreign method may raise anything, and not all work on the meta device
        return False


def _is_fused(module: nn.Module) -> bool:
    names = {conv for form in FORMS for conv in form.convs}
    return any("fused_from" in vars(part) for part in module.modules()) or any(
        module._modules.get(name) is not None for name in names
    )
