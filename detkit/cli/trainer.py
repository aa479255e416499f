"""The trainer's defaults: loggers, checkpoints, progress. What the user sets in `trainer:` is added to or wins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from detkit.engine.callbacks import LastCheckpoint
from detkit.engine.progress import EpochBar, EpochLines
from detkit.files import write_text

EPOCHS = 12


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder: with it, the run can be repeated."""

    def __init__(self, parser: Any, config: Any, folder: Path) -> None:
        super().__init__(parser, config, overwrite=True, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning on rank 0, before the run starts."""
        write_text(self.folder / "config.yaml", self.parser.dump(self.config, skip_none=False))


def complete(
    config: dict[str, Any], callbacks: list[Callback], command: str, folder: Path | None
) -> tuple[dict[str, Any], list[Callback]]:
    """Fills in what the user left open.

    Args:
        config: the arguments of the trainer.
        callbacks: detkit's configurable callbacks. A callback of the same kind in `trainer.callbacks` replaces one.
        command: fit, validate, test or predict.
        folder: the run's folder; None where nothing is kept.

    Returns:
        The arguments, and the callbacks to be added to the user's.
    """
    config = dict(config)
    own = config.get("callbacks") or []
    own = list(own) if isinstance(own, list | tuple) else [own]
    config["callbacks"] = own
    if config.get("logger") in (None, True):
        config["logger"] = default_loggers(folder) if folder is not None else False
    if command == "fit" and config.get("max_epochs") is None and config.get("max_time") is None:
        # Lightning's own default is 1000 epochs; 12 is the field's "1x". -1: max_steps alone decides.
        config["max_epochs"] = EPOCHS if config.get("max_steps", -1) == -1 else -1
    kept = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
    if folder is not None and config.get("enable_checkpointing") is not False:
        if not any(isinstance(c, ModelCheckpoint) for c in own):
            kept += [c for c in callbacks if isinstance(c, ModelCheckpoint)]
        for callback in (*own, *kept):
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        kept.append(LastCheckpoint(folder / "checkpoints"))
    if config["logger"] and command == "fit" and not any(isinstance(c, LearningRateMonitor) for c in own):
        kept.append(LearningRateMonitor(logging_interval="step"))
    if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in own):
        kept.append(progress())
    if command != "fit" or folder is None:
        config["enable_checkpointing"] = False if not any(isinstance(c, ModelCheckpoint) for c in own) else None
    return config, kept


def progress() -> ProgressBar:
    """A bar on a terminal, lines where the output goes to a file."""
    return EpochBar() if sys.stdout.isatty() else EpochLines()


def default_loggers(folder: Path) -> list[Logger]:
    """`metrics.csv` and TensorBoard's events, both in the run's folder."""
    place: dict[str, Any] = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
    return [CSVLogger(**place), TensorBoardLogger(**place, default_hp_metric=False)]
