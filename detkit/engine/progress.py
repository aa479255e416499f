"""Progress of a fit: a bar on a terminal; elsewhere one line an epoch, and one every half minute within long ones."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.progress import ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from detkit.engine.module import TrainableModule
from detkit.engine.time_estimate import time_left, total_batches
from detkit.progress import duration

#: Where the hooks at the end of a batch have its index, behind module, outputs and batch.
BATCH_IDX = 3
SHOWN = ("val/loss", "val/accuracy", "val/map", "val/map_50")


class EpochBar(RichProgressBar):
    """Lightning's rich bar, a line of which stays for every epoch, with the last mAP and the time left of the run."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._metrics: dict[str, Any] = {}
        self._validated = 0  # the epoch of the last validation, from 1

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, bar, steps of all, and the time."""
        return [*super().configure_columns(trainer)[:3], _TimeColumn(trainer)]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._describe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_new = self.train_progress_bar_id is None  # of a run that goes on within an epoch
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if is_new:
            self._describe(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = trainer.current_epoch + 1
        super().on_validation_end(trainer, pl_module)

    def _describe(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, description=epoch_name(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: TrainableModule) -> dict[str, Any]:
        """The values beside the bar; reading the loss makes the device wait, so it is read as often as it is logged."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        if trainer.training and self._metrics and step % trainer.log_every_n_steps:
            return self._metrics
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        value, value_50 = (trainer.callback_metrics.get(name) for name in ("val/map", "val/map_50"))
        about = pl_module.protocol_description
        if self._validated != trainer.current_epoch + 1:  # they are not of the epoch in the line
            about += f", epoch {self._validated}"
        if value is not None:
            metrics[f"mAP ({about})"] = float(value)
        if value_50 is not None:
            metrics["AP50"] = float(value_50)
        self._metrics = metrics
        return metrics


class _TimeColumn(ProgressColumn):
    """The time left of a whole fit; of another command the time that has passed and is left."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self._trainer = trainer
        self._columns = (TimeElapsedColumn(), TimeRemainingColumn())

    def render(self, task: Task) -> Text:
        left = time_left(self._trainer) if self._trainer.state.fn == "fit" else None
        if left is not None:
            return Text(f"{duration(left)} left", style="dim")
        elapsed, remaining = self._columns
        if self._trainer.state.fn == "fit":
            return elapsed.render(task)
        return Text.assemble(elapsed.render(task), " • ", remaining.render(task))


class EpochLines(ProgressBar):
    """Prints one line at the end of each epoch, and one every ``interval`` seconds before it."""

    def __init__(self, interval: float = 30.0) -> None:
        super().__init__()
        self.interval = interval
        self._enabled = True
        self._epoch_start = time.monotonic()
        self._last_line = time.monotonic()
        self._loss: Tensor | None = None  # the sum over the epoch's steps, on their device
        self._steps = 0
        self._has_validated = False

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
        self._loss, self._steps, self._has_validated = None, 0, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._loss = loss.detach().float() + (0.0 if self._loss is None else self._loss)
            self._steps += 1
        if self._is_due():
            total, left = total_batches(trainer), time_left(trainer)
            done = trainer.fit_loop.total_batch_idx + 1
            of = f" of {total:,}" if total is not None else ""
            time_text = f", about {duration(left)} left" if left is not None else ""
            self.print(f"{epoch_name(trainer, pl_module)}: step {done:,}{of}{self._mean_loss(', ')}{time_text}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        """Print the epoch in one line: steps, seconds, the mean loss and, if it was validated, the mAP."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k in SHOWN and self._has_validated}
        shown = [f"{k} {values[k]:.4f}" for k in SHOWN if k in values and not math.isnan(values[k])]
        protocol = f" ({pl_module.protocol_description})" if any(k.startswith("val/map") for k in values) else ""
        seconds = time.monotonic() - self._epoch_start
        text = "".join(f"  {each}" for each in shown)
        name = epoch_name(trainer, pl_module)
        self.print(f"{name}  step {trainer.global_step}  {seconds:.1f} s{self._mean_loss('  ')}{text}{protocol}")

    def _mean_loss(self, separator: str) -> str:
        if self._loss is None:
            return ""
        return f"{separator}train/loss {float(self._loss) / self._steps:.4f}"

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._has_validated = not trainer.sanity_checking

    def on_validation_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("validation", step[BATCH_IDX], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("test", step[BATCH_IDX], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, *step: Any) -> None:
        self._print_position("predict", step[BATCH_IDX], trainer.num_predict_batches)

    def _print_position(self, name: str, batch_idx: int, totals: Sequence[float]) -> None:
        if self._is_due():
            self.print(f"{name}: batch {batch_idx + 1} of {sum(totals):.0f}")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < self.interval:
            return False
        self._last_line = now
        return True


def epoch_name(trainer: Trainer, module: TrainableModule) -> str:
    """ "epoch 3 of 12", counted from 1, after the stage that a fit of several is in."""
    stage = f"{module.stage}, " if module.stage else ""
    last = trainer.max_epochs
    of = f" of {last}" if last is not None and last > 0 else ""
    return f"{stage}epoch {trainer.current_epoch + 1}{of}"
