"""The checkpoints of a run: the best validation and the last epoch."""

from __future__ import annotations

import os
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from detkit.classes import full_name
from detkit.engine.checkpoints import read_checkpoint
from detkit.errors import CheckpointError, ConfigError
from detkit.files import staged
from detkit.settings import check_range
from detkit.signals import SIGNALS, Stopped
from detkit.torch_files import check_form


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
        patience: stop the fit after so many validations without a better one; null: train to the end.

    Raises:
        ConfigError: a patience below 1.
    """

    def __init__(
        self, monitor: str = "val/map", mode: str = "max", every_n_epochs: int = 1, patience: int | None = None
    ) -> None:
        check_range("patience", patience, 1)
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
        self.patience = patience
        self._class_name = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.patience is not None and getattr(pl_module, "has_stages", False):
            raise ConfigError("patience: a fit of several stages is not stopped early; set it to null")
        self._class_name = full_name(type(pl_module))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the best checkpoint so far into this run's folder."""
        check_form(state_dict, {"best_model_path": "", "best_model_score": None}, "callbacks.BestCheckpoint")
        old, folder, score = state_dict["best_model_path"], self.dirpath, state_dict["best_model_score"]
        if not folder or not self._is_best(Path(old)):
            return
        if score is not None and (not isinstance(score, Tensor) or score.ndim or score.is_complex()):
            raise CheckpointError("its entry callbacks.BestCheckpoint.best_model_score is not as detkit writes it")
        new = os.path.join(folder, "best.ckpt")
        if os.path.abspath(old) != os.path.abspath(new) and rank_zero_only.rank == 0:
            with staged(Path(folder)) as part:
                shutil.copyfile(old, part / "best.ckpt")
        state = self.state_dict() | {
            "dirpath": folder,
            "best_model_score": score,  # None without a validation: whatever comes next is better
            "best_model_path": new,
            "kth_best_model_path": new,
            "best_k_models": {} if score is None else {new: score},
            "last_model_path": "",
        }
        super().load_state_dict(state)

    def _is_best(self, path: Path) -> bool:
        """Whether a file is a best checkpoint of this model: its path comes from a file that may be a stranger's."""
        if path.name != "best.ckpt" or not path.is_file():
            return False
        try:
            found = read_checkpoint(path)["detkit"]["class"]
            why = "" if found == self._class_name else f"it is of a {found.rpartition('.')[2]}"
        except CheckpointError as error:
            why = str(error)
        if why:
            rank_zero_info(f"the best checkpoint so far is not copied: {path}: {why.removeprefix(f'{path}: ')}")
        return not why

    def save_stage(self, trainer: Trainer, complete: bool) -> None:
        """The complete detector counts as the best, whatever was better before; earlier stages write nothing."""
        if not complete or trainer.fast_dev_run:
            return
        path = os.path.join(str(self.dirpath), "best.ckpt")
        value = trainer.callback_metrics.get(self.monitor)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = None if value is None else value.detach().cpu()
        self.best_k_models = {} if self.best_model_score is None else {path: self.best_model_score}
        trainer.save_checkpoint(path)


class Patience(EarlyStopping):
    """Stops a fit after so many validations without a better one; a resumed run has the patience it is given now."""

    def __init__(self, best: BestCheckpoint) -> None:
        options: dict[str, Any] = {"strict": False, "check_on_train_epoch_end": False}
        super().__init__(best.monitor, mode=best.mode, patience=best.patience, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score and the validations since then, and nothing else."""
        now = self.state_dict()
        check_form(state_dict, {"wait_count": 0, "best_score": None}, "callbacks.Patience")
        score = state_dict["best_score"]
        if not isinstance(score, Tensor) or score.ndim or score.is_complex():
            raise CheckpointError("its entry callbacks.Patience.best_score is not as detkit writes it")
        super().load_state_dict(now | {"wait_count": state_dict["wait_count"], "best_score": score})


class LastCheckpoint(StageCheckpoint):
    """Keeps `last.ckpt` in a folder, written after every epoch, after every validation within one, and at a stop.

    SIGINT and SIGTERM stop a fit after the step in hand, or after the validation that is due or goes on then, so that
    it can go on exactly. Lightning's own `save_last` writes only where the best changed too.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "last.ckpt"
        self._is_saved = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        SIGNALS.begin_item()
        if self._is_saved:  # at the end of the epoch before, or of a validation
            self._stop(trainer, KeyboardInterrupt)
        self._is_saved = False

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        count, every = args[-1] + 1, trainer.val_check_batch
        total = count if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx + 1
        validates = trainer.is_last_batch or (every is not None and total % every == 0)
        if not validates and count % trainer.accumulate_grad_batches == 0:
            self._stop(trainer, Stopped)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        SIGNALS.waits = False
        self._stop(trainer, KeyboardInterrupt)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if trainer.val_check_batch != trainer.num_training_batches:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._save(trainer)

    def save_stage(self, trainer: Trainer, complete: bool) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._is_saved = True
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path)

    def _stop(self, trainer: Trainer, error: type[KeyboardInterrupt]) -> None:
        """Raise the error if a signal has reached one of the processes."""
        if trainer.strategy.reduce_boolean_decision(SIGNALS.received is not None, all=False):
            raise error


class AtomicCheckpointIO(TorchCheckpointIO):
    """A plugin that writes beside the path and renames: a killed run leaves a whole checkpoint or the old one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any = None
    ) -> None:
        with staged(Path(path).parent) as part:
            super().save_checkpoint(checkpoint, part / Path(path).name, storage_options)
