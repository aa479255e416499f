"""A run that was stopped and resumed sees the very samples of one that was not."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from detkit.data import Shapes
from detkit.data.loaders import begin_next_epoch

BATCHES = 4  # an epoch: 7 images in batches of 2


class Recorder(L.LightningModule):
    """Learns nothing; notes the pixels and ids of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[tuple[str, int]]]] = []

    def on_train_start(self) -> None:
        begin_next_epoch(self.trainer)

    def training_step(self, batch: list, index: int) -> torch.Tensor:
        pixels = [(sample["image_id"], int((sample["image"].long() * torch.arange(48)).sum())) for sample in batch]
        self.seen.append((self.global_step, pixels))
        return self.weight.sum()

    def validation_step(self, batch: list, index: int) -> None:
        self.log("images", float(len(batch)), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # As a schedule does; Lightning builds the training loader for it, before it knows how far a resumed run came.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


Whole = Callable[..., tuple[Recorder, Path]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "shapes"
    Shapes(str(path), 7, 1, 1, 48).prepare_data()
    return path


def run(
    folder: Path, root: Path, workers: int, resume: Path | None = None, val: int = 0, **options: object
) -> Recorder:
    model = Recorder()
    data = Shapes(str(folder), 7, 1, 1, 48, batch_size=2, num_workers=workers, seed=3)
    root = root if resume is None else root / "resumed"
    callback = ModelCheckpoint(root, "{step}", save_top_k=-1, every_n_train_steps=1)
    ends = ModelCheckpoint(root, "end-{step}", save_top_k=-1, save_on_train_epoch_end=True, every_n_epochs=1)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback, ends],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=val,
        num_sanity_val_steps=0,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        trainer.fit(model, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return model


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """`whole(workers, val, max_epochs=3)` -> an uninterrupted run and the folder of its checkpoints."""

    @functools.cache
    def find(workers: int, val: int, **options: int) -> tuple[Recorder, Path]:
        root = tmp_path_factory.mktemp("whole")
        return run(folder, root, workers, val=val, **options), root

    return find


@pytest.mark.parametrize(("workers", "val"), [(0, 0), (0, 1), (2, 1)])
@pytest.mark.parametrize("name", ["step=1", "step=3", "step=4", "step=6", "step=8", "end-step=4", "end-step=8"])
def test_resumed_run_equals_uninterrupted(
    whole: Whole, folder: Path, tmp_path: Path, workers: int, val: int, name: str
) -> None:
    first, root = whole(workers, val, max_epochs=3)
    assert len(first.seen) == 3 * BATCHES
    resumed = run(folder, tmp_path, workers, root / f"{name}.ckpt", val, max_epochs=3)
    assert resumed.seen == first.seen[int(name.split("=")[1]) :]


@pytest.mark.parametrize(("val", "epochs"), [(0, -1), (1, -1), (1, 5)])
@pytest.mark.parametrize("name", ["step=3", "step=4", "step=6", "end-step=4", "end-step=8"])
def test_resumed_by_steps_equals_uninterrupted(
    whole: Whole, folder: Path, tmp_path: Path, val: int, epochs: int, name: str
) -> None:
    first, root = whole(0, val, max_steps=14)
    assert len(first.seen) == 14
    resumed = run(folder, tmp_path, 0, root / f"{name}.ckpt", val, max_steps=14, max_epochs=epochs)
    assert resumed.seen == first.seen[int(name.split("=")[1]) :]


def test_resuming_twice_equals_uninterrupted(whole: Whole, folder: Path, tmp_path: Path) -> None:
    first, root = whole(0, 0, max_steps=14)
    run(folder, tmp_path, 0, root / "end-step=4.ckpt", max_steps=8)
    for name in ("step=6", "end-step=8"):
        resumed = run(folder, tmp_path / name, 0, tmp_path / "resumed" / f"{name}.ckpt", max_steps=14)
        assert resumed.seen == first.seen[int(name.split("=")[1]) :]
