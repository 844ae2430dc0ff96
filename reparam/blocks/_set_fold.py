"""Set how the blocks of a model fold."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import SpecError, check_model
from ._at_once import compute_at_once
from ._block import PHASES, Fold, ReparamBlock


def set_fold(model: nn.Module, fold: Fold | Mapping[str, Mapping[str, bool]]) -> list[str]:
    """Set `fold` of every block of a model, or what "auto" does in some blocks; see `ReparamBlock`.

    From then on, the model computes the kernels of identical blocks together when its forward begins: the same values
    in fewer operations. A hook on the model does this; `fuse` removes it from its result.

    Args:
        model: any module.
        fold: "auto", True or False; or the `choices` of `tune_fold`, by block name and phase. Blocks with choices are
            set to "auto" and follow them in these phases; the other blocks are not changed.

    Returns:
        The dotted names of the blocks that were set.

    Raises:
        SpecError: if a block cannot take the value, or if choices name an unknown block or phase; the message names
            it. Then nothing is changed.

    Example:
        >>> from reparam import RepSRBlock
        >>> set_fold(nn.Sequential(RepSRBlock(8)), False)
        ['0']
    """
    check_model(model)
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ReparamBlock)}
    names = _choose(blocks, fold) if isinstance(fold, Mapping) else _set(blocks, fold)
    compute_at_once(model)
    return names


def _set(blocks: Mapping[str, ReparamBlock], fold: Fold) -> list[str]:
    for name, block in blocks.items():
        if why := block.why_not_fold(fold):
            raise SpecError(f"block {name!r}: {why}")
    for block in blocks.values():
        block.fold = fold
    return list(blocks)


def _choose(blocks: Mapping[str, ReparamBlock], choices: Mapping[str, Mapping[str, bool]]) -> list[str]:
    for name, by_phase in choices.items():
        if name not in blocks:
            raise SpecError(f"fold has a choice for block {name!r}, but the model has the blocks {list(blocks)}")
        if wrong := [item for item in by_phase.items() if item[0] not in PHASES or not isinstance(item[1], bool)]:
            raise SpecError(
                f"block {name!r}: choices must be True or False for the phases {PHASES}, but got {dict(wrong)}"
            )
    for name, by_phase in choices.items():
        blocks[name].fold = "auto"
        blocks[name]._chosen = dict(by_phase)
    return list(choices)
