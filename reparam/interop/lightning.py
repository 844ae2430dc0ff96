"""For Lightning: the batch norm freeze schedule as a callback. Only this file needs Lightning; import it by name."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]  # its other package

from ..bn._schedule import BNFreezeSchedule
from ..errors import SpecError


class BNFreezeCallback(Callback):
    """Freezes the statistics of every batch norm at a fraction of a Trainer's steps; see `BNFreezeSchedule`.

    It counts steps of the (only) optimizer, also with gradient accumulation and in a resumed run.

    Args:
        fraction: 0 to 1; with 1, nothing is frozen.
        total_steps: the steps of the whole training, if the Trainer cannot know them.

    Raises:
        SpecError: when training starts, if the number of steps is neither given nor known to the Trainer, or the
            fraction is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_steps=100, accelerator="cpu", logger=False, callbacks=[BNFreezeCallback(0.9)])
    """

    def __init__(self, fraction: float = 0.9, *, total_steps: int | None = None) -> None:
        self.fraction, self.total_steps = fraction, total_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the number of steps and make the schedule."""
        steps = self.total_steps or trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise SpecError(
                f"cannot freeze at the fraction {self.fraction} of a training run without an end (max_steps="
                f"{trainer.max_steps}, max_epochs={trainer.max_epochs}); pass total_steps to BNFreezeCallback"
            )
        self.schedule = BNFreezeSchedule(pl_module, int(steps), fraction=self.fraction)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze if it is time."""
        self.schedule.steps = trainer.global_step  # a step may consist of several batches
        self.schedule.step()
