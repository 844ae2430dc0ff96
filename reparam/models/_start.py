"""How an `SRNet` starts: its layers keep the size of their input, and the last one adds almost nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from ..blocks._block import ReparamBlock
from ..bn._norm import is_norm
from ..branches import IdentityBranch

LAST = 0.01
"""Factor on what the last layer gives at the start."""


@torch.no_grad()
def scale_start(body: Iterable[nn.Module], chosen: Container[nn.Module] | None = None) -> None:
    r"""Scale freshly initialized convolutions and blocks; modules of other kinds are left as they are.

    1. All biases become zero. They are as large as the signal otherwise, and hide it behind a few layers.
    2. A layer without batch norm and identity gets a kernel whose rows have length 1:
       $\mathrm{mean}_o \lVert K_o \rVert^2 = 1$, so that y is as large as x (Y. LeCun, L. Bottou, G. Orr, K.-R. Müller,
       "Efficient BackProp", 1998, section 4.6). A batch norm or an identity sees to that by itself.
    3. What the last layer gives is multiplied by `LAST`, so that the network starts as its enlarged input.

    Args:
        body: the layers in their order.
        chosen: the layers to scale; None means all.
    """
    layers = [layer for layer in body if isinstance(layer, (nn.Conv2d, ReparamBlock))]
    for layer in layers:
        if chosen is None or layer in chosen:
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
            if not _keeps_the_size(layer):
                kernel = layer.weight if isinstance(layer, nn.Conv2d) else layer.kernel().weight
                length = kernel.flatten(1).square().sum(1).mean().sqrt()
                scale(layer, torch.where(length > 0, 1 / length, 1.0))
            if layer is layers[-1]:
                scale(layer, LAST)


@torch.no_grad()
def scale(layer: nn.Module, factor: float | Tensor) -> None:
    """Multiply what a layer gives at the start: the weights that its input meets last. Plain identities are left."""
    if isinstance(layer, ReparamBlock):
        for part in layer.branches if layer.norm is None else [layer.norm]:
            scale(part, factor)
        return
    weights = [parameter for name, parameter in layer.named_parameters() if not name.endswith("bias")]
    for last in weights[-1:]:
        last.mul_(factor)


def _keeps_the_size(layer: nn.Module) -> bool:
    return any(is_norm(module) or isinstance(module, IdentityBranch) for module in layer.modules())
