"""The checkpoints of a run: the best validation and the last epoch."""

from __future__ import annotations

import os
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only


class StageCheckpoint(Checkpoint):
    """Base of the checkpoints that a fit of several stages also writes at the end of a stage."""

    def save_stage(self, trainer: Trainer, complete: bool) -> None:
        """Write the checkpoint of a stage that has ended, ``complete`` if it was the last one."""
        raise NotImplementedError(f"{type(self).__name__} must implement save_stage")


class BestCheckpoint(StageCheckpoint, ModelCheckpoint):
    """Keeps `checkpoints/best.ckpt`, the epoch with the best validation; an mAP that is NaN counts as the worst.

    In a resumed run the best of the run it goes on from is copied, so that `best` is the best of both.

    Args:
        monitor: what is compared, for example `val/map`, `val/map_50` or `val/loss`.
        mode: `max` or `min`.
        every_n_epochs: compare every so many epochs.
    """

    def __init__(self, monitor: str = "val/map", mode: str = "max", every_n_epochs: int = 1) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            every_n_epochs=every_n_epochs,
            filename="best",
            save_top_k=1,
            save_last=False,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint so far into this run's folder."""
        state = dict(state_dict)
        old, folder = state.get("best_model_path"), self.dirpath
        if not old or not folder or not Path(old).is_file():
            return
        new = os.path.join(folder, "best.ckpt")
        if os.path.abspath(old) != os.path.abspath(new) and rank_zero_only.rank == 0:
            os.makedirs(folder, exist_ok=True)
            shutil.copyfile(old, f"{new}.part")
            os.replace(f"{new}.part", new)
        score = state["best_model_score"]  # None without a validation: whatever comes next is better
        state |= {
            "dirpath": folder,
            "best_model_path": new,
            "kth_best_model_path": new,
            "best_k_models": {} if score is None else {new: score},
            "last_model_path": "",
        }
        super().load_state_dict(state)

    def save_stage(self, trainer: Trainer, complete: bool) -> None:
        """The complete detector counts as the best, whatever was better before; earlier stages write nothing."""
        if not complete or trainer.fast_dev_run:
            return
        path = os.path.join(str(self.dirpath), "best.ckpt")
        value = trainer.callback_metrics.get(self.monitor)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = None if value is None else value.detach().cpu()
        self.best_k_models = {} if value is None else {path: self.best_model_score}
        trainer.save_checkpoint(path)


class LastCheckpoint(StageCheckpoint):
    """Keeps `last.ckpt` in a folder, written after every epoch (and after every validation within one).

    Lightning's own `save_last` writes only where the best changed too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "last.ckpt"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit" and trainer.val_check_interval != 1.0:
            self._save(trainer)

    def save_stage(self, trainer: Trainer, complete: bool) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """A plugin that writes beside the path and renames: a killed run leaves a whole checkpoint or the old one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any = None
    ) -> None:
        part = f"{os.fspath(path)}.part"
        super().save_checkpoint(checkpoint, part, storage_options)
        os.replace(part, path)
