"""The trainer's defaults: run folder, loggers, checkpoints, progress. What the user sets in `trainer:` wins."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from detkit.data.datamodule import DetectionDataModule
from detkit.data.voc_files import SPLIT_FILE
from detkit.engine.callbacks import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, Patience
from detkit.engine.checkpoints import INITIAL_WEIGHTS
from detkit.engine.curves import EARLIER, RunCurves
from detkit.engine.model_card import ModelCard
from detkit.engine.progress import EpochBar, EpochLines
from detkit.engine.run_pictures import PredictionPicture, TrainBatchPicture
from detkit.engine.summary import NETWORK, NetworkFile
from detkit.engine.time_estimate import TimeEstimate
from detkit.files import versions, write_json, write_text, writing

EPOCHS = 12
#: The environment variable in which the processes of a run find its folder.
VARIABLE = "DETKIT_RUN_FOLDER"
#: Files that a fit writes before its first step has ended, besides TensorBoard's.
STARTED = ("config.yaml", "hparams.yaml", NETWORK, SPLIT_FILE, EARLIER)


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder: with it, the run can be repeated, from any folder."""

    def __init__(self, parser: Any, config: Any, folder: Path) -> None:
        super().__init__(parser, config, overwrite=True, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning on rank 0, before the run starts."""
        config = self.config.clone()
        with_absolute_paths(config)
        division = trainer.datamodule.division() if isinstance(trainer.datamodule, DetectionDataModule) else None
        if division is not None:  # so that a test has the same sets when images were added
            write_json(self.folder / SPLIT_FILE, division)
            config.data.init_args.sets = str((self.folder / SPLIT_FILE).absolute())
        write_text(self.folder / "config.yaml", self.parser.dump(config, skip_none=False))


def with_absolute_paths(config: Namespace) -> None:
    """Make the paths in a config absolute, in place, so that they mean the same from any folder.

    They are the values of `path`, of names that end in `_path` or `_dir`, and `weights` and `init_from` that are there.
    """
    for name, value in list(config.items()):
        last = name.rpartition(".")[2]
        is_path = last != "class_path" and re.fullmatch(r"(\w+_)?(path|dir)", last)
        if isinstance(value, str) and (is_path or (last in INITIAL_WEIGHTS and os.path.exists(value))):
            config[name] = os.path.abspath(value)


def make_run_folder(root: Path, rank: int) -> Path:
    """Make the next free `version_N` in root. Rank 0 makes it; the processes it starts find it in the environment.

    Raises:
        ConfigError: it cannot be made.
    """
    if rank > 0:
        # Under torchrun there is nothing to inherit; only rank 0 writes, so a name is all that is needed.
        return Path(os.environ.get(VARIABLE) or next(iter(versions(root)), root / "version_0"))
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        taken = versions(root)
        number = int(taken[0].name.removeprefix("version_")) + 1 if taken else 0
        while True:
            folder = root / f"version_{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            os.environ[VARIABLE] = str(folder)
            return folder


def remove_started(folder: Path) -> None:
    """Delete a run's folder that holds no more than what a fit writes before its first step has ended."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if all(path.name in STARTED or path.name.startswith("events.out.tfevents") for path in files):
        shutil.rmtree(folder, ignore_errors=True)


def complete(config: dict[str, Any], callbacks: list[Callback], command: str, folder: Path | None) -> dict[str, Any]:
    """The trainer's arguments, with detkit's defaults where the user left them open.

    A user's callback replaces detkit's of the same kind. ``folder`` is the run's; None where nothing is kept.
    """
    config = dict(config)
    users = config.get("callbacks") or []
    users = list(users) if isinstance(users, list | tuple) else [users]
    if config.get("logger") in (None, True):
        config["logger"] = False
        if folder is not None:
            options: dict[str, Any] = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
            config["logger"] = [CSVLogger(**options), TensorBoardLogger(**options, default_hp_metric=False)]
    if command == "fit" and config.get("max_epochs") is None and config.get("max_time") is None:
        # Lightning's own default is 1000 epochs; 12 is the field's "1x". -1: max_steps alone decides.
        config["max_epochs"] = EPOCHS if config.get("max_steps", -1) == -1 else -1
    plugins = config.get("plugins") or []
    plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        config["plugins"] = [*plugins, AtomicCheckpointIO()]
    has_checkpoint = any(isinstance(callback, ModelCheckpoint) for callback in users)
    added = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
    if folder is not None and config.get("enable_checkpointing") is not False:
        if not has_checkpoint:
            added += [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in (*users, *added):
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        added.append(LastCheckpoint(folder / "checkpoints"))
    for best in callbacks:
        if isinstance(best, BestCheckpoint) and best.patience is not None:
            added.append(Patience(best))
    if config["logger"] and command == "fit" and not any(isinstance(c, LearningRateMonitor) for c in users):
        added.append(LearningRateMonitor(logging_interval="step"))
    if command == "fit" and not any(isinstance(callback, TimeEstimate) for callback in users):
        added.append(TimeEstimate())
    if folder is not None:
        files = (NetworkFile, TrainBatchPicture, PredictionPicture, RunCurves, ModelCard)
        added += [kind(folder=folder) for kind in files if not any(isinstance(each, kind) for each in users)]
    if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in users):
        # A bar on a terminal, lines where the output goes to a file.
        added.append(EpochBar() if sys.stdout.isatty() else EpochLines())
    if command != "fit" or folder is None:
        config["enable_checkpointing"] = None if has_checkpoint else False
    return {**config, "callbacks": [*users, *added]}
