"""What the callbacks that write into a run's folder share: where, whether, and that none of them ends a fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunFileCallback(Callback):
    """Base of the callbacks that write a file of a fit.

    Args:
        folder: where to write; by default the logger's, else the trainer's `default_root_dir`.

    Attributes:
        writes: whether this process writes: the first one, in a fit that is no `fast_dev_run`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.writes = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.folder is None:
            self.folder = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is a collective call
        self.writes = stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run

    def path(self, name: str) -> Path:
        """The path of a file of the run."""
        return (self.folder or Path()) / name


@contextmanager
def warn_on_error(what: str) -> Iterator[None]:
    """Turn an error of the block into a warning of one line: a fit is not lost for a picture."""
    try:
        yield
    except Exception as error:  # whatever a drawing or a disk may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"warning: {what} is not written: {reason}", flush=True)


def is_best(trainer: Trainer) -> bool:
    """Whether the validation that ends now is the best so far, before the checkpoint callback has compared it.

    Lightning calls checkpoint callbacks last. Without one that compares, every validation counts as the best.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor is None:
            continue
        value, best = trainer.callback_metrics.get(callback.monitor), callback.best_model_score
        if value is None or best is None or torch.isnan(torch.as_tensor(best)):
            return True
        return bool(value > best) if callback.mode == "max" else bool(value < best)
    return True
