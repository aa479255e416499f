"""How long a fit will take: told after its first steps, and kept up to date for the progress bar."""

from __future__ import annotations

import math
import shlex
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from detkit.data.datamodule import DataModule
from detkit.engine.module import TrainableModule
from detkit.progress import duration
from detkit.system import available_cores
from detkit.types import Batch

#: The estimate is known after so many steps and seconds, or after fewer steps if they are slow.
STEPS, SECONDS = 8, 5.0
SLOW_STEPS, SLOW_SECONDS = 3, 60.0
#: The speed is the mean of the last steps.
WINDOW = 200
#: Time of an image in a validation relative to one in a training step, with their loading; until it was measured.
VALIDATION_SHARE = 0.6
#: Beyond so many seconds on a CPU a shorter way is named, and how many minutes `detkit recipe` plans.
LONG, RECIPE_MINUTES = 2 * 3600.0, 20.0
#: Of less nobody needs an estimate.
SHORT = 30.0


class TimeEstimate(Callback):
    """Times the steps of a fit, with their loading; says once how long the run will take.

    The hooks keep what was measured, and `left` computes the rest of the run when it is asked. A GPU's steps end after
    their calls have returned: it is waited for behind the first step and before the first estimate, so that the mean of
    the steps in between is right. A validation, and what happens between two epochs (checkpoints, new loaders), has the
    time that the last one took; the first validation's is estimated by `VALIDATION_SHARE`.

    Args:
        clock: gives seconds; another one is for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._trainer: Trainer | None = None
        self._steps: deque[float] = deque(maxlen=WINDOW)  # seconds
        self._count = 0  # steps of this process
        self._done = 0  # steps of the whole run
        self._images = 1  # of the last step
        self._first_end = self._end = self._clock()  # of the first and the last step
        self._now = self._end  # the moment of the last hook
        self._gap = "start"  # what has happened since the last step: "", "epoch" or "validation"
        self._gaps: dict[str, float] = {}  # seconds of the last "validation" and "epoch"
        self._is_known = False

    # -- Lightning -------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._reset()
        self._trainer = trainer

    def on_train_epoch_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._gap = self._gap or "epoch"

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        if not trainer.sanity_checking:
            self._gap, self._now = "validation", self._clock()
            self._gaps["validation"] = self._now - self._end

    def on_train_batch_start(self, trainer: Trainer, pl_module: TrainableModule, batch: Batch, batch_idx: int) -> None:
        if self._gap in ("epoch", "validation"):
            self._now = self._clock()
            self._gaps[self._gap] = self._now - self._end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._count += 1
        now = self._clock()
        few, many = (self._count >= least for least in (SLOW_STEPS, STEPS))
        seconds = now - self._first_end
        is_new = not self._is_known and ((many and seconds >= SECONDS) or (few and seconds >= SLOW_SECONDS))
        if (self._count == 1 or is_new) and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            now = self._clock()
        if self._count == 1:
            self._first_end = now
        if not self._gap:
            self._steps.append(now - self._end)
        self._images, self._done = max(len(batch), 1), trainer.fit_loop.total_batch_idx + 1
        self._end, self._now, self._gap = now, now, ""
        if is_new and self._steps:
            self._is_known = True
            if (self.left() or 0.0) >= SHORT and (text := self.text(trainer, pl_module)) is not None:
                pl_module.print(text)

    # -- the estimate ----------------------------------------------------------------------------

    def left(self) -> float | None:
        """Seconds until the fit ends, at most; None where that is not known (yet). Any thread may ask."""
        trainer = self._trainer
        if trainer is None:
            return None
        limits = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
        total = total_batches(trainer)
        if self._is_known and total is not None:
            per_epoch, validations = int(trainer.num_training_batches), self._validations_left(trainer, total)
            epochs = (total - 1) // per_epoch - self._done // per_epoch
            seconds = (total - self._done) * self._step_seconds() + validations * self._validation_seconds(trainer)
            # Validations at an epoch's end include what happens between epochs.
            seconds += max(epochs - validations, 0) * self._gaps.get("epoch", 0.0)
            limits.append(seconds - (self._clock() - self._now))
        known = [limit for limit in limits if limit is not None]
        return max(min(known), 0.0) if known else None

    def _step_seconds(self) -> float:
        return fmean(list(self._steps))

    def _validation_seconds(self, trainer: Trainer) -> float:
        """Seconds of a validation: of the last one, or by the steps."""
        images = validation_images(trainer, self._images)
        return self._gaps.get("validation", images * VALIDATION_SHARE * self._step_seconds() / self._images)

    def _validations_left(self, trainer: Trainer, total: int) -> int:
        done = self._done if self._gap == "validation" else self._done - 1  # one that is due now has not run
        return validations_until(trainer, total) - validations_until(trainer, done)

    def text(self, trainer: Trainer, pl_module: TrainableModule) -> str | None:
        """The line that is printed once; None where the length of the run is not known."""
        left, total = self.left(), total_batches(trainer)
        if left is None:
            return None
        at_most = "at most " if any(isinstance(each, EarlyStopping) for each in trainer.callbacks) else ""
        words = f"{at_most}about {duration(left)} on {device_name(pl_module.device)}"
        if total is not None:
            step = self._step_seconds()
            speed = f"{step:.1f} s" if step >= 1 else f"{step:.2g} s"
            words += f": {total - self._done:,} steps of {speed} with their loading"
            if count := self._validations_left(trainer, total):
                each = duration(self._validation_seconds(trainer))
                words += f", and {count:,} validation{'s' if count > 1 else ''} of about {each}"
        if pl_module.progress_unit != "epoch":
            words += "; the stages after the last epoch are not counted"
        if left > LONG and pl_module.device.type == "cpu":
            path = getattr(trainer.datamodule, "path", None)
            data = shlex.quote(path) if isinstance(path, str) else "DATA"
            words += (
                f"\nThat is long: `detkit recipe {data}` writes a config that takes about {RECIPE_MINUTES:g} minutes "
                "on this machine (--minutes takes another number)"
            )
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
    if not trainer.enable_validation or not every or not math.isfinite(every) or not validation_images(trainer, 1):
        return 0
    if epochs is None:
        return int(batches // every)
    per_epoch = int(trainer.num_training_batches)
    full, rest = divmod(batches, per_epoch)
    count = full // epochs * int(per_epoch // every)
    return count + (int(rest // every) if (full + 1) % epochs == 0 else 0)


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
