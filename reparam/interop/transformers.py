"""For the Trainer of Hugging Face's transformers: the batch norm freeze schedule as a callback."""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:
    TrainerCallback = object  # without transformers there is no Trainer to pass it to

from ..bn._schedule import BNFreezeSchedule


class BNFreezeCallback(TrainerCallback):
    """Freezes the statistics of every batch norm at a fraction of a Trainer's steps; see `BNFreezeSchedule`.

    It counts steps of the optimizer, also with gradient accumulation and in a resumed run.

    Args:
        fraction: 0 to 1; with 1, nothing is frozen.

    Raises:
        SpecError: when training starts, if the fraction is out of range.

    Example:
        >>> callback = BNFreezeCallback(0.9)  # Trainer(model, arguments, callbacks=[callback])
        >>> callback.fraction
        0.9
    """

    def __init__(self, fraction: float = 0.9) -> None:
        self.fraction = fraction

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **others: Any) -> None:
        """Read the number of steps and make the schedule."""
        self.schedule = BNFreezeSchedule(model, state.max_steps, fraction=self.fraction)

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Freeze if it is time."""
        self.schedule.steps = state.global_step  # above zero at the start of a resumed run
        self.schedule.step()
