"""The range of a network's weights before and after fusing, which decides how well 8 bits represent them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor, nn

from ...numerics._compare import largest


@dataclass(frozen=True)
class LayerRange:
    """The ranges of one convolution of the fused network, and of the layers of the block that it replaced."""

    name: str
    """Dotted name, the same in both networks."""
    spread_before: float | None
    """The largest max|w| of an output channel over the smallest, for the block's worst layer; None without a block."""
    spread: float
    """The same for the convolution. With one scale per tensor, its smallest channel has 254 / spread levels left."""
    peak_before: float | None
    """max|w| over the standard deviation, for the block's worst layer; None without a block."""
    peak: float
    """The same for the convolution."""


def layer_ranges(net: nn.Module, plain: nn.Module) -> tuple[LayerRange, ...]:
    """The ranges of every convolution.

    Args:
        net: a network with blocks, or without.
        plain: the same network, fused.

    Example:
        >>> from reparam import ECB, fuse
        >>> net = nn.Sequential(ECB(4), nn.Conv2d(4, 4, 1))
        >>> [(row.name, row.spread_before is None) for row in layer_ranges(net, fuse(net))]
        [('0', False), ('1', True)]
    """
    modules = dict(net.named_modules())
    rows = []
    for name, conv in plain.named_modules():
        if isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            before = modules.get(name)
            block = before is not None and type(before) is not type(conv)
            weights = [p.detach() for p in before.parameters() if p.dim() > 2] if block else []  # type: ignore[union-attr]  # not None
            whole = conv.weight.detach()
            rows.append(
                LayerRange(name, _worst(_spread, weights), _spread(whole), _worst(_peak, weights), _peak(whole))
            )
    return tuple(rows)


def _worst(measure, weights: Sequence[Tensor]) -> float | None:
    return largest(map(measure, weights)) if weights else None


def _spread(weight: Tensor) -> float:
    sizes = weight.abs().flatten(1).amax(1)
    smallest = float(sizes.min())
    return float(sizes.max()) / smallest if smallest else inf


def _peak(weight: Tensor) -> float:
    deviation = float(weight.std(correction=0))
    return float(weight.abs().max()) / deviation if deviation else inf
