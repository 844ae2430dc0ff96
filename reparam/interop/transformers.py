"""The Trainer of Hugging Face's transformers: the schedule of frozen batch norms as a callback."""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:
    TrainerCallback = object  # nobody can hand it to a Trainer then

from ..bn._schedule import BNFreezeSchedule


class BNFreezeCallback(TrainerCallback):
    """Freezes the statistics of every batch norm at a fraction of a Trainer's steps; see `BNFreezeSchedule`.

    The steps are those of the optimizer, with gradient accumulation, and of a run that is resumed too.

    Args:
        fraction: 0 to 1; with 1 no step is frozen.

    Raises:
        SpecError: when training starts, for a fraction out of range.

    Example:
        >>> callback = BNFreezeCallback(0.9)  # Trainer(model, arguments, callbacks=[callback])
        >>> callback.fraction
        0.9
    """

    def __init__(self, fraction: float = 0.9) -> None:
        self.fraction = fraction

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **others: Any) -> None:
        """Learns how many steps there are."""
        self.schedule = BNFreezeSchedule(model, state.max_steps, fraction=self.fraction)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Freezes if it is time."""
        self.schedule.steps = state.global_step  # which a run that is resumed begins with
        self.schedule.step()
