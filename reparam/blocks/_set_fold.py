"""How the blocks of a model fold."""

from __future__ import annotations

from torch import nn

from ..errors import SpecError
from ._at_once import compute_at_once, no_more_at_once
from ._block import Fold, ReparamBlock


def set_fold(model: nn.Module, fold: Fold) -> list[str]:
    """Sets `fold` of every block of a model; see `ReparamBlock`.

    Kernels of blocks that are alike are computed together from then on, when the forward of the model begins: the same
    numbers in fewer operations. A hook of the model does it, which `fuse` takes off its result.

    Args:
        model: any module.
        fold: "auto", True or False.

    Returns:
        The dotted names of the blocks.

    Raises:
        SpecError: if a block cannot take the value; it is named, and nothing is changed.

    Example:
        >>> from reparam import RepSRBlock
        >>> set_fold(nn.Sequential(RepSRBlock(8)), False)
        ['0']
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ReparamBlock)}
    for name, block in blocks.items():
        if why := block.why_not_fold(fold):
            raise SpecError(f"block {name!r}: {why}")
    for block in blocks.values():
        block.fold = fold
    if fold is False or isinstance(model, ReparamBlock) or len(blocks) < 2:
        no_more_at_once(model)
    else:
        compute_at_once(model)
    return list(blocks)
