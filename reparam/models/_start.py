"""How an `SRNet` starts: some of the signal reaches the last layer, at any depth, and that adds almost nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from ..blocks._block import ReparamBlock
from ..bn._norm import is_norm
from ..branches import IdentityBranch

ARRIVES = 0.2
"""Size of the signal before the last layer at the start, relative to the input."""
LAST = 0.01
"""Factor on what the last layer gives at the start."""


@torch.no_grad()
def scale_start(body: Iterable[nn.Module], chosen: Container[nn.Module] | None = None) -> None:
    r"""Scale freshly initialized convolutions and blocks; modules of other kinds are left as they are.

    1. All biases become zero. They are as large as the signal otherwise, and hide it behind a few layers.
    2. The kernel K of a layer without batch norm and identity gets rows of length $g\,d^{1/(L-1)}$:

       $$\mathrm{mean}_o \lVert K_o \rVert^2 = g^2 d^{2/(L-1)}, \qquad g^2 = \frac{2}{1 + a^2},$$

       where L is the number of layers and a the slope for negative values of the activation behind this one. With g
       alone, that activation is as large as the input of the layer (K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into
       Rectifiers", ICCV 2015, section 2.2). Behind the L - 1 layers before the last one, the share d = `ARRIVES` of the
       signal is left, at any depth. A batch norm or an identity keeps the size by itself.
    3. The last layer has no activation and gets rows of length 1. What it gives is multiplied by `LAST`, so that the
       network starts as its enlarged input.

    Args:
        body: the layers and activations in their order.
        chosen: the layers to scale; None means all.
    """
    modules = list(body)
    layers = [module for module in modules if isinstance(module, (nn.Conv2d, ReparamBlock))]
    share = ARRIVES ** (1 / max(len(layers) - 1, 1))
    for layer, act in zip(modules, [*modules[1:], None]):
        if isinstance(layer, (nn.Conv2d, ReparamBlock)) and (chosen is None or layer in chosen):
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
            if not _keeps_the_size(layer):
                kernel = layer.weight if isinstance(layer, nn.Conv2d) else layer.kernel().weight
                length = kernel.flatten(1).square().sum(1).mean().sqrt()
                wanted = 1.0 if layer is layers[-1] else _gain(act) * share
                scale(layer, torch.where(length > 0, wanted / length, 1.0))
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


def _gain(act: nn.Module | None) -> float:
    """g, the factor by which a layer must enlarge what the activation behind it makes smaller."""
    slope = 0.0
    if isinstance(act, nn.PReLU):
        slope = act.init
    elif isinstance(act, nn.LeakyReLU):
        slope = act.negative_slope
    elif isinstance(act, nn.Identity):
        slope = 1.0
    return nn.init.calculate_gain("leaky_relu", slope)
