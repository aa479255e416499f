"""Whole fits of R-CNN for the tests of its stages: killed where it is wanted, and counted what they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.detectors.rcnn import stages as rcnn_stages
from detkit.detectors.rcnn.ablation import Ablation
from detkit.detectors.rcnn.features import RegionFeatures
from detkit.engine.callbacks import BestCheckpoint, LastCheckpoint
from detkit.engine.checkpoints import read_checkpoint

from .rcnn_parts import rcnn, with_proposals

WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in (
        *("Checkpoint directory", "The dirpath has changed", "overridden `transfer_batch_to_device`"),
        *("could not find the monitored key", "have no `val_dataloader`", "The ``compute`` method of metric"),
    )
]
Calls = Counter[str]


class Stop(L.Callback):
    """Breaks off in a training step, as a killed run does."""

    def __init__(self, calls: Calls, step: int | None) -> None:
        self.calls, self.step = calls, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.calls["step"] += 1
        if trainer.global_step == self.step:
            raise InterruptedError("killed")


class Fitted(NamedTuple):
    """A fit that came to its end, or was killed."""

    model: detkit.RCNN
    folder: Path
    calls: Calls
    metrics: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def state(self, name: str = "last") -> dict[str, Any]:
        return read_checkpoint(self.checkpoints / f"{name}.ckpt")

    def stage(self, name: str = "last") -> str:
        return stage_of(self.state(name))

    @property
    def feature_files(self) -> list[Path]:
        return [path for path in self.folder.rglob("features/*/*") if path.is_file()]


def stage_of(checkpoint: dict[str, Any]) -> str:
    """The last stage that a checkpoint has finished."""
    return checkpoint["callbacks"]["RCNNStages"]["stage"]


Fit = Callable[..., Fitted]


def make_fit(shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    """`fit(folder, kill=None, resume=False, model=None, epochs=2, validate=True, limit=None, **options)`.

    2 epochs of 4 steps on 8 images, validation of 3 images in 2 batches; `kill` is (what, which call of it).
    """

    def fit(
        folder: Path,
        kill: tuple[str, int] | None = None,
        resume: bool = False,
        model: detkit.RCNN | None = None,
        epochs: int = 2,
        validate: bool = True,
        limit: int | None = None,
        **options: Any,
    ) -> Fitted:
        calls: Calls = Counter()

        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **given: Any) -> Any:
                calls[name] += 1
                if kill == (name, calls[name]):
                    raise InterruptedError("killed")
                return function(*args, **given)

            return call

        best = BestCheckpoint()
        best.dirpath = str(folder / "checkpoints")
        stop = Stop(calls, kill[1] if kill is not None and kill[0] == "step" else None)
        runner = trainer(
            max_epochs=epochs,
            default_root_dir=str(folder),
            enable_checkpointing=True,
            callbacks=[stop, best, LastCheckpoint(folder / "checkpoints")],
            **({"limit_val_batches": limit} if validate else {"limit_val_batches": 0}),
        )
        model = model or rcnn(**options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PL_GLOBAL_SEED", "5")
            patch.setattr(RegionFeatures, "_store", counted("features", RegionFeatures._store))
            patch.setattr(rcnn_stages, "learn_svms", counted("SVMs", rcnn_stages.learn_svms))
            patch.setattr(rcnn_stages, "learn_boxes", counted("boxes", rcnn_stages.learn_boxes))
            patch.setattr(Ablation, "update", counted("validation", Ablation.update))
            torch.manual_seed(5)
            ckpt_path = str(folder / "checkpoints/last.ckpt") if resume else None
            data = with_proposals(shapes(seed=5))
            try:
                runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
            except InterruptedError:
                assert kill is not None
                kill = None
        assert kill is None, f"{kill} was never reached"
        return Fitted(model, folder, calls, dict(runner.callback_metrics))

    return fit
