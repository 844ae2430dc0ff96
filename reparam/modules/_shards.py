"""Models whose parameters are sharded over processes."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def why_not_whole(model: nn.Module) -> str | None:
    """Why no process has all parameters of a model (FSDP 1 or 2, or `DTensor`), or None if each process has them."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # not imported for this
    kinds = tuple(getattr(fsdp, name) for name in ("FSDPModule", "FullyShardedDataParallel") if hasattr(fsdp, name))
    sharded = next((name for name, module in model.named_modules() if isinstance(module, kinds)), None)
    if sharded is None:
        sharded = next((name for name, one in model.named_parameters() if type(one.data).__name__ == "DTensor"), None)
    if sharded is None:
        return None
    name = sharded or f"the {type(model).__name__}"
    return (
        f"{name} is sharded over processes, none of which has all of its parameters; in all of them call "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions(full_state_dict="
        "True, cpu_offload=True)), load the result into a newly built model, and use that one"
    )
