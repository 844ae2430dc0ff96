"""What branches and blocks of this library are called, so that two ways to build the same are seen as one."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ...blocks._block import ReparamBlock
from ...blocks._mobileie import SideBySide
from ...blocks._plainusr import LearnedGate
from ...bn._norm import is_norm
from ...branches import (
    AvgPoolBranch,
    ConvBNBranch,
    ConvBranch,
    ExpandSqueezeBranch,
    IdentityBranch,
    SequentialBranch,
)
from ...branches._edge import FixedFilter, _EdgeBranch
from ...branches._stages import ChannelScale, IdentityPlusPoint
from .own_shapes import shape_of


def kind_of(module: Any) -> str:
    """What a reading of its tensors calls a branch or a block."""
    if isinstance(module, ReparamBlock):
        return f"({'+'.join(map(kind_of, module.branches))})"
    if isinstance(module, SequentialBranch):
        return f"[{','.join(map(_kind_of_stage, module.layers))}]"
    kind = kind_of_class(type(module))
    return f"conv {shape_of(module.conv.kernel_size, module.spec.kernel_size)}" if kind == "conv" else kind


def kind_of_class(made: type) -> str:
    """The same for the classes of branches that are no chain and no block."""
    kinds: dict[type, str] = {
        IdentityBranch: "identity",
        AvgPoolBranch: "pool",
        _EdgeBranch: "edge",
        SideBySide: "side",
    }
    kinds |= {ExpandSqueezeBranch: "expand", ConvBranch: "conv", ConvBNBranch: "conv"}
    return next((name for kind, name in kinds.items() if issubclass(made, kind)), made.__name__)


def _kind_of_stage(module: nn.Module) -> str:
    if is_norm(module) or isinstance(module, ReparamBlock):
        return kind_of(module) if isinstance(module, ReparamBlock) else "norm"
    if isinstance(module, _ConvNd):
        plain = module.bias is None and all(k == 1 for k in module.kernel_size)
        return "square" if plain and module.in_channels == module.out_channels else "conv"
    kinds: dict[type, str] = {
        ChannelScale: "scale",
        FixedFilter: "filter",
        IdentityPlusPoint: "unit",
        LearnedGate: "gate",
    }
    return kinds.get(type(module), type(module).__name__)
