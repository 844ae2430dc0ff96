"""torch's linear layers and norms as linear maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _CircularPadNd, _ReflectionPadNd, _ReplicationPadNd

from ...algebra._affine import after, pointwise, the_input
from ...algebra._linear import LinearOp, linear_op
from ...bn._norm import is_norm, stored_scale_shift
from ...errors import NotLinearError
from .exact import exact, numbers


def norm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift, both (C,), of a batch norm with its stored statistics, frozen or not.

    Raises:
        NotLinearError: if the forward of a frozen norm does something else.
    """
    if is_norm(norm):
        return stored_scale_shift([norm])
    like: Any = norm.running_var
    scale, shift = _measured(norm)
    return scale.to(like), shift.to(like)


def _measured(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a frozen norm, found by running it: in DETR's and others' norms, eps is in the forward only.

    Raises:
        NotLinearError: if it does anything but scale and shift channels.
    """
    bare = exact(norm)
    for name in bare._modules:  # the activation of timm's, which runs afterwards
        bare._modules[name] = nn.Identity()
    var: Tensor = bare.running_var
    for ones in ((1, 1), (1,), (1, 1, 1)):
        zeros = var.new_zeros(1, len(var), *ones)
        far = zeros + 2.0**40  # so large that the shift costs the scale no digits
        x = numbers((2, len(var), *(k + 1 for k in ones), 3)[: len(ones) + 2], var)
        try:
            shift, high, y = (bare.forward(value) for value in (zeros, far, x))
        except Exception:  # a foreign forward may raise anything; it may want another number of axes
            continue
        scale = (high - shift) / 2.0**40
        if y.shape == x.shape and (var.is_meta or torch.allclose(y, scale * x + shift, 1e-9, 1e-9)):
            return scale.flatten(), shift.flatten()
    raise NotLinearError(f"the forward of {type(norm).__name__} is not a scale and shift per channel")


def layer_of_torch(layer: nn.Module, like: Tensor) -> LinearOp:
    """The linear map of a layer of torch in eval mode; `like` has the dtype and device for layers without parameters.

    Raises:
        NotLinearError: if it is not linear.
    """
    if isinstance(layer, (nn.Identity, _DropoutNd)):
        return the_input(like)
    if isinstance(layer, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        return pads_of(layer.padding, "constant", like)
    if isinstance(layer, (_ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)):
        mode = next(
            name for name in ("reflect", "replicate", "circular") if type(layer).__name__.lower().startswith(name[:7])
        )
        return pads_of(layer.padding, mode, like)
    return linear_op(layer, 1, like)  # a pool of one channel stands for the same on every channel


def pads_of(amounts: Any, mode: str, like: Tensor) -> LinearOp:
    """Padding, in the order of `torch.nn.functional.pad`: the last axis first."""
    pairs = tuple(zip(amounts[::2], amounts[1::2]))[::-1]
    return the_input(like)._replace(pads=pairs, padding_mode="zeros" if mode == "constant" else mode)


def norm_op(norm: nn.Module, like: Tensor) -> LinearOp:
    """The linear map of a norm and of the modules inside it, which run after it (timm's norms hold an activation)."""
    value = pointwise(*norm_scale_shift(norm))
    for following in norm.children():
        value = after(value, layer_of_torch(following, like))
    return value
