"""Progress: a bar on a terminal; elsewhere one line an epoch, and one a minute within long ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/map", "val/map_50")


class EpochBar(RichProgressBar):
    """Lightning's rich bar, a line of which stays for every epoch, with the last mAP in it."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._of_stage = ""

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Reading the loss makes the device wait: only as often as it is logged anyway.
        if not trainer.training or trainer.fit_loop.epoch_loop.total_batch_idx % trainer.log_every_n_steps == 0:
            super()._update_metrics(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learns which stage the epochs are of."""
        super().on_train_start(trainer, pl_module)
        self._of_stage = _stage(pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        return self._of_stage + super()._get_train_description(current_epoch)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        value = trainer.callback_metrics.get("val/map")
        if value is not None:
            metrics[f"val/map ({_protocol(pl_module)})"] = float(value)
        return metrics


class EpochLines(ProgressBar):
    """Prints one line at the end of each epoch, and one a minute before it.

    Args:
        interval: seconds between lines within an epoch, a validation, a test or a prediction.
    """

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._epoch_start = self._said = time.monotonic()

    @property
    def is_enabled(self) -> bool:
        """Whether this process prints; asked for by `LightningModule.print`."""
        return self._enabled

    def disable(self) -> None:
        """Called by Lightning in every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """The opposite of `disable`."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """What `LightningModule.print` calls."""
        if self._enabled:
            print(*args, flush=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says how far a long epoch is."""
        self._say(f"{_stage(pl_module)}epoch {_epoch(trainer)}", batch_idx, [trainer.num_training_batches])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch in one line: steps, seconds, losses, and the mAP with its protocol."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k in SHOWN}
        shown = "  ".join(f"{k} {values[k]:.4f}" for k in SHOWN if k in values and not math.isnan(values[k]))
        seconds = time.monotonic() - self._epoch_start
        if any(k.startswith("val/map") for k in values):
            shown += f" ({_protocol(pl_module)})"
        self.print(
            f"{_stage(pl_module)}epoch {_epoch(trainer)}  step {trainer.global_step}  {seconds:.1f} s  {shown}".rstrip()
        )

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Says how far a long validation is."""
        self._say("validation", batch_idx, trainer.num_val_batches)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Says how far a long test is."""
        self._say("test", batch_idx, trainer.num_test_batches)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Says how far a long prediction is."""
        self._say("predict", batch_idx, trainer.num_predict_batches)

    def _say(self, what: str, index: int, totals: Sequence[float]) -> None:
        now = time.monotonic()
        if now - self._said >= self.interval:
            self._said = now
            self.print(f"{what}: batch {index + 1} of {sum(totals):.0f}")


def _epoch(trainer: Trainer) -> str:
    last = trainer.max_epochs
    return f"{trainer.current_epoch + 1}/{last}" if last is not None and last > 0 else f"{trainer.current_epoch + 1}"


def _stage(module: LightningModule) -> str:
    """The stage that a fit of several is in."""
    return f"{stage}, " if (stage := getattr(module, "stage", "")) else ""


def _protocol(module: LightningModule) -> str:
    return str(getattr(getattr(module, "metric", None), "protocol", "protocol of the model"))
