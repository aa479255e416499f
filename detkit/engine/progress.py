"""Progress: a bar on a terminal; elsewhere one line an epoch, and one a minute within long ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from detkit.engine.module import TrainableModule

#: Where the hooks at the end of a batch have its index, behind module, outputs and batch.
BATCH_IDX = 3
SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/map", "val/map_50")


class EpochBar(RichProgressBar):
    """Lightning's rich bar, a line of which stays for every epoch, with the last mAP in it."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._metrics: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: TrainableModule) -> dict[str, Any]:
        """The values beside the bar; reading the loss makes the device wait, so it is read as often as it is logged."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        if trainer.training and self._metrics and step % trainer.log_every_n_steps:
            return self._metrics
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if pl_module.stage:
            metrics = {"stage": pl_module.stage, **metrics}
        value = trainer.callback_metrics.get("val/map")
        if value is not None:
            metrics[f"val/map ({pl_module.protocol_description})"] = float(value)
        self._metrics = metrics
        return metrics


class EpochLines(ProgressBar):
    """Prints one line at the end of each epoch, and one every ``interval`` seconds before it."""

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._epoch_start = time.monotonic()
        self._last_line = time.monotonic()

    @property
    def is_enabled(self) -> bool:
        """Whether this process prints; asked for by `LightningModule.print`."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            print(*args, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._epoch_start = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._print_position(_epoch_name(trainer, pl_module), batch_idx, [trainer.num_training_batches])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        """Print the epoch in one line: steps, seconds, losses, and the mAP with its protocol."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k in SHOWN}
        shown = "  ".join(f"{k} {values[k]:.4f}" for k in SHOWN if k in values and not math.isnan(values[k]))
        seconds = time.monotonic() - self._epoch_start
        if any(k.startswith("val/map") for k in values):
            shown += f" ({pl_module.protocol_description})"
        name = _epoch_name(trainer, pl_module)
        self.print(f"{name}  step {trainer.global_step}  {seconds:.1f} s  {shown}".rstrip())

    def on_validation_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("validation", step[BATCH_IDX], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("test", step[BATCH_IDX], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("predict", step[BATCH_IDX], trainer.num_predict_batches)

    def _print_position(self, name: str, batch_idx: int, totals: Sequence[float]) -> None:
        now = time.monotonic()
        if now - self._last_line >= self.interval:
            self._last_line = now
            self.print(f"{name}: batch {batch_idx + 1} of {sum(totals):.0f}")


def _epoch_name(trainer: Trainer, module: TrainableModule) -> str:
    """ "epoch 3/12", after the stage that a fit of several is in."""
    stage = f"{module.stage}, " if module.stage else ""
    last = trainer.max_epochs
    of = f"/{last}" if last is not None and last > 0 else ""
    return f"{stage}epoch {trainer.current_epoch + 1}{of}"
