"""Which batch norms compute plain batch norm, so that they are a scale and a shift per channel and can be frozen."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@cache
def runs_a_known_forward(kind: Any) -> bool:
    """Whether batch norms of this class run torch's forward, one of ours, or that of timm's norms with activation."""
    module = kind.forward.__module__
    return module == _NormBase.__module__ or module.startswith(f"{__package__}.") or _is_timms(kind)


def _is_timms(kind: Any) -> bool:
    """Whether a class runs the forward of timm's norms with activation, which runs its modules after the norm."""
    owner = kind.forward.__qualname__.partition(".")[0]
    return kind.forward.__module__.startswith("timm.") and owner in ("BatchNormAct2d", "SyncBatchNormAct")


def why_unknown(bn: nn.Module) -> str | None:
    """Why a batch norm may compute something other than batch norm, or None if it does not."""
    kind: Any = getattr(bn, "_unfrozen_class", type(bn))
    name = kind.__name__
    if "forward" in vars(bn):
        return f"the forward of this {name} was replaced on the object; `del norm.forward` restores that of its class"
    if "parametrizations" in bn._modules:
        return f"the affine of this {name} is computed (parametrizations); call remove_parametrizations on it"
    if not runs_a_known_forward(kind):
        return f"{name} has a forward of its own and may compute something other than batch norm"
    if bn._modules and not _is_timms(kind):
        return f"this {name} holds modules ({', '.join(bn._modules)}) that its forward does not run"
    return None
