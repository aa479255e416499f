"""How long a fit will take: told after its first steps, and kept up to date for the progress bar."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import Tensor

from detkit.data.datamodule import DataModule
from detkit.engine.module import TrainableModule
from detkit.progress import duration
from detkit.system import available_cores
from detkit.types import Batch

#: The estimate is told after so many steps and seconds, or after fewer steps if they are slow.
STEPS, SECONDS = 8, 5.0
SLOW_STEPS, SLOW_SECONDS = 3, 60.0
#: The speed is the mean of the last steps.
WINDOW = 200
#: Time of a validation relative to the forward part of training steps, for the same number of images: losses and
#: detections are computed. Used until one validation was measured.
VALIDATION_FACTOR = 1.3
#: Beyond so many seconds on a CPU a shorter way is named.
LONG = 2 * 3600.0
#: Of less nobody needs an estimate.
SHORT = 30.0


class TimeEstimate(Callback):
    """Times the steps of a fit, with their loading; says once how long the run will take.

    Until the first validation has ended, its time is estimated from the forward part of the steps. What happens
    between two epochs (checkpoints, new loaders) is counted as soon as it was measured.

    Args:
        clock: gives seconds; another one is for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._forwards: deque[float] = deque(maxlen=WINDOW)  # seconds an image
        self._waits: deque[float] = deque(maxlen=WINDOW)  # likewise, for the loader
        self._began = self._end = self._start = self._clock()
        self._count = 0  # steps of this process
        self._images = 1  # of the batch in hand
        self._pause = "start"  # what came after the last step
        self._pauses: dict[str, float] = {}  # seconds of the last "validation" and "epoch"
        self._ends_at: float | None = None  # by the clock
        self._is_told = False

    # -- Lightning -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._reset()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._pause = self._pause or "epoch"

    def on_validation_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if not trainer.sanity_checking:
            self._pause = "validation"

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if not trainer.sanity_checking:
            self._pauses["validation"] = self._clock() - self._end
            self._predict(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainableModule, batch: Batch, batch_idx: int) -> None:
        self._images = max(len(batch), 1)
        self._start = self._clock()
        if not self._pause:
            self._waits.append((self._start - self._end) / self._images)
        elif self._pause != "start":
            self._pauses[self._pause] = self._start - self._end

    def on_before_backward(self, trainer: Trainer, pl_module: TrainableModule, loss: Tensor) -> None:
        if self._count:
            self._forwards.append((self._clock() - self._start) / self._images)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._count += 1
        if self._count in (1, SLOW_STEPS, STEPS) and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # otherwise the first steps seem to take no time
        now = self._clock()
        if not self._pause:
            self._steps.append(now - self._end)
        if self._count == 1:
            self._began = now
        self._end, self._pause = now, ""
        self._predict(trainer)
        if not self._is_told and self._is_known(now - self._began):
            self._is_told = True
            if (self.left() or 0.0) >= SHORT and (text := self.text(trainer, pl_module)) is not None:
                pl_module.print(text)

    def _is_known(self, seconds: float) -> bool:
        few, many = SLOW_STEPS, STEPS
        return (self._count >= many and seconds >= SECONDS) or (self._count >= few and seconds >= SLOW_SECONDS)

    # -- the estimate ----------------------------------------------------------------------------

    def step_seconds(self) -> float | None:
        """Seconds of a step and its loading; None before two steps were measured."""
        if len(self._steps) < 2:
            return None
        return median(self._steps) if self._count <= 2 * STEPS else fmean(self._steps)

    def validation_seconds(self, trainer: Trainer) -> float:
        """Seconds of a validation: of the last one, or estimated from the forward part of the steps."""
        if (measured := self._pauses.get("validation")) is not None:
            return measured
        images = validation_images(trainer, self._images)
        an_image = median(self._forwards or [0.0]) * VALIDATION_FACTOR + median(self._waits or [0.0])
        return images * an_image

    def left(self) -> float | None:
        """Seconds until the fit ends, at most; None where that is not known. Any thread may ask."""
        return None if self._ends_at is None else max(self._ends_at - self._clock(), 0.0)

    def _predict(self, trainer: Trainer) -> None:
        limits = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
        step, total, done = self.step_seconds(), total_batches(trainer), trainer.fit_loop.total_batch_idx + 1
        if step is not None and total is not None:
            epochs = (total - 1) // trainer.num_training_batches - done // trainer.num_training_batches
            validations = self._validations_left(trainer, total)
            seconds = (total - done) * step + validations * self.validation_seconds(trainer)
            # Validations at an epoch's end include what happens between epochs.
            limits.append(seconds + max(epochs - validations, 0) * self._pauses.get("epoch", 0.0))
        known = [limit for limit in limits if limit is not None]
        self._ends_at = self._clock() + min(known) if known else None

    def _validations_left(self, trainer: Trainer, total: int) -> int:
        done = trainer.fit_loop.total_batch_idx + 1
        if self._pause != "validation":  # one that is due after the last step has not run
            done -= 1
        return validations_until(trainer, total) - validations_until(trainer, done)

    def text(self, trainer: Trainer, pl_module: TrainableModule) -> str | None:
        """The line that is printed once; None where the length of the run is not known."""
        step, total, left = self.step_seconds(), total_batches(trainer), self.left()
        if left is None or step is None:
            return None
        done = trainer.fit_loop.total_batch_idx + 1
        at_most = "at most " if any(isinstance(each, EarlyStopping) for each in trainer.callbacks) else ""
        words = f"{at_most}about {duration(left)} on {device_name(pl_module.device)}"
        if total is not None:
            speed = f"{step:.1f} s" if step >= 1 else f"{step:.2g} s"
            words += f": {total - done:,} steps of {speed} with their loading"
            if count := self._validations_left(trainer, total):
                each = duration(self.validation_seconds(trainer))
                words += f", and {count:,} validation{'s' if count > 1 else ''} of about {each}"
        if pl_module.progress_unit != "epoch":
            words += "; the stages after the last epoch are not counted"
        if left > LONG and pl_module.device.type == "cpu":
            words += "\nThat is long: `detkit recipe DATA` writes a config that fits this machine"
        return words


def time_left(trainer: Trainer) -> float | None:
    """Seconds until the fit ends, as the trainer's `TimeEstimate` knows; None without it, or before it knows."""
    estimates = [callback for callback in trainer.callbacks if isinstance(callback, TimeEstimate)]
    return estimates[0].left() if estimates else None


def total_batches(trainer: Trainer) -> int | None:
    """Training batches of the whole run, on each device; None where only the time or nothing ends it."""
    per_epoch, epochs, steps = trainer.num_training_batches, trainer.max_epochs, trainer.max_steps
    limits: list[float] = []
    if epochs is not None and epochs >= 0:
        limits.append(epochs * per_epoch)
    if steps >= 0:
        limits.append(steps * trainer.accumulate_grad_batches)
    total = min(limits, default=math.inf)
    return int(total) if math.isfinite(total) and math.isfinite(per_epoch) and per_epoch > 0 else None


def validations_until(trainer: Trainer, batches: int) -> int:
    """Validations of a run that has trained on so many batches since its beginning."""
    every, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or not every or not math.isfinite(every) or not has_validation(trainer):
        return 0
    if epochs is None:
        return int(batches // every)
    per_epoch = int(trainer.num_training_batches)
    full, rest = divmod(batches, per_epoch)
    count = full // epochs * int(per_epoch // every)
    return count + (int(rest // every) if (full + 1) % epochs == 0 else 0)


def has_validation(trainer: Trainer) -> bool:
    """Whether there is something to validate on."""
    return validation_images(trainer, 1) > 0


def validation_images(trainer: Trainer, batch_size: int) -> float:
    """Images that each device validates on; ``batch_size`` is a guess for data modules that are not detkit's."""
    limit, data = trainer.limit_val_batches, trainer.datamodule
    if isinstance(data, DataModule):
        dataset = data.dataset("val")
        images = 0.0 if dataset is None else len(dataset) / trainer.world_size
        return images * limit if isinstance(limit, float) else min(images, limit * data.eval_batch_size)
    return float(sum(trainer.num_val_batches) * batch_size)


def device_name(device: torch.device) -> str:
    """ "this CPU (2 cores)", "this GPU (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"this GPU ({torch.cuda.get_device_name(device)})"
    if device.type != "cpu":
        return f"this device ({device.type})"
    cores = available_cores()
    return f"this CPU ({cores} core{'s' if cores > 1 else ''})"
