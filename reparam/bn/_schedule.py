"""Freeze the statistics of batch norm at a given training step."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import SpecError
from ._freeze import freeze_bn_stats, known_norms, unfreeze_bn_stats
from ._frozen import freezes_as_saved


class BNFreezeSchedule:
    r"""Freeze the statistics of every batch norm of a model at a fraction of the training.

    Of $T$ training steps, numbered from 0, those from $\mathrm{round}(f T)$ on run with frozen statistics, while the
    affine keeps learning; see `freeze_bn_stats`. A model without batch norm is not changed.

    A resumed run is frozen again in either of two ways:

    - by the number of steps, if you save and load the state of the schedule;
    - by the metadata that torch saves with the model's state dict. A model with a schedule, a block, and a model that
      went through `swap_convs` freeze on loading what was frozen on saving. Safetensors files, and plain dicts made
      from a state dict, have no metadata.

    To start a new training on batch statistics from a state dict with this metadata, call `unfreeze_bn_stats(model)`
    after loading.

    Source: X. Wang, C. Dong, Y. Shan, "RepSR", ACM MM 2022, arXiv 2205.05671, which freezes "in the later part"; the
    default of 0.9 comes from JL-DY's unofficial code.

    Args:
        model: any module.
        total_steps: T, the number of training steps.
        fraction: f, 0 to 1; with 1 no step is frozen.

    Raises:
        SpecError: for an argument out of range.
        StatisticsError: for a batch norm with its own class or forward, which may compute something else.

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
            raise SpecError(f"total_steps must be at least 1, but got total_steps={total_steps}")
        if not 0 <= fraction <= 1:
            raise SpecError(f"the fraction of steps before freezing must be 0 to 1, but got {fraction=}")
        known_norms(model, "freeze")  # raises now, not after nine tenths of a training
        freezes_as_saved(model)
        self.model = model
        self.freeze_step = round(fraction * total_steps)
        self.steps = 0
        self.frozen = False

    def step(self) -> None:
        """Count a training step. Call it before the forward pass, unlike a learning-rate scheduler.

        Raises:
            StatisticsError: if it is time to freeze and a batch norm never saw a batch.
        """
        if self.steps >= self.freeze_step and not self.frozen:
            freeze_bn_stats(self.model)
            self.frozen = True
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state: the next `step()` freezes if it is time.

        The state dicts of the model and of the schedule may be loaded in either order.
        """
        self.steps = int(state["steps"])
        if self.frozen:
            unfreeze_bn_stats(self.model)
            self.frozen = False
