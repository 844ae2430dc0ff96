"""When to freeze the statistics of batch norm, counted in training steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import SpecError
from ._freeze import freeze_bn_stats, known_norms, unfreeze_bn_stats
from ._frozen import freezes_as_saved


class BNFreezeSchedule:
    r"""Freezes the statistics of every batch norm of a model at a fraction of the training.

    Of $T$ training steps, numbered from 0, those from $\mathrm{round}(f T)$ on run with frozen statistics; the affine
    learns on. See `freeze_bn_stats` for what that is. A model without batch norm is left as it is.

    A run that is resumed later is frozen for either of two reasons. The number of steps says so, if the state of the
    schedule is saved and loaded. And the state dict of the model does, in the metadata that torch saves beside the
    tensors: a model with a schedule, a block, and a model on which `swap_convs` was called freeze what was frozen when
    it was saved. A plain dict that was made of a state dict, and a safetensors file, have no metadata. Who starts
    another training from a state dict that has it, on batch statistics, calls `unfreeze_bn_stats(model)` after loading.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671, which freezes "in the later part"; the
    default of 0.9 is that of JL-DY's unofficial code.

    Args:
        model: any module.
        total_steps: T, training steps in all.
        fraction: f, 0 to 1; with 1 no step is frozen.

    Raises:
        SpecError: for an argument out of range.
        StatisticsError: for a batch norm with a class or a forward of its own, which may compute something else.

    Example:
        >>> from reparam import RepSRBlock
        >>> import torch
        >>> net = RepSRBlock(4)
        >>> schedule = BNFreezeSchedule(net, total_steps=10)
        >>> frozen = []
        >>> for _ in range(10):
        ...     schedule.step()
        ...     _ = net(torch.rand(2, 4, 8, 8))  # forward, backward, optimizer.step()
        ...     frozen.append(schedule.frozen)
        >>> frozen.index(True) == 9 and schedule.freeze_step == 9
        True
    """

    def __init__(self, model: nn.Module, total_steps: int, *, fraction: float = 0.9) -> None:
        if total_steps < 1:
            raise SpecError(f"a training has one step or more, but got total_steps={total_steps}")
        if not 0 <= fraction <= 1:
            raise SpecError(f"the statistics are frozen at a fraction of 0 to 1 of the steps, but got {fraction=}")
        known_norms(model, "freeze")  # now, and not at nine tenths of a training
        freezes_as_saved(model)
        self.model = model
        self.freeze_step = round(fraction * total_steps)
        self.steps = 0
        self.frozen = False

    def step(self) -> None:
        """Call it before each training step: before the forward pass, unlike the schedule of a learning rate.

        Raises:
            StatisticsError: if it is time to freeze, and a batch norm never saw a batch.
        """
        if self.steps >= self.freeze_step and not self.frozen:
            freeze_bn_stats(self.model)
            self.frozen = True
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there: the next `step()` freezes if it is time.

        The state dicts of the model and of this may be loaded in either order.
        """
        self.steps = int(state["steps"])
        if self.frozen:
            unfreeze_bn_stats(self.model)
            self.frozen = False
