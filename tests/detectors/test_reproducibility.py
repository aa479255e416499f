"""Whole fits: the same twice, and the same after a stop, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.data import Shapes

from .conftest import Small, differing

State = dict[str, torch.Tensor]
# Lightning's, of what is meant to be so: an old folder is gone on with, or checkpoints lie elsewhere.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}")
    for text in ("Checkpoint directory", "The dirpath has changed", "overridden `transfer_batch_to_device`")
]
FLIPS = [
    {"class_path": "HorizontalFlip", "init_args": {"p": 0.5}},
    {"class_path": "ColorJitter", "init_args": {"p": 1.0}},
]


class Stop(L.Callback):
    """Breaks off after so many steps, as a killed run does."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise InterruptedError("killed")


Fit = Callable[..., detkit.FasterRCNN]


@pytest.fixture(scope="module")
def fit(small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]) -> Fit:
    """`fit(folder, seed=5, resume=None, stop=None, workers=0, **trainer options)` -> the fitted detector.

    A checkpoint of every step and one of the last whole epoch are left in the folder. There is chance in every
    place there can be: order, augmentation, sizes, sampling and dropout.
    """

    def run(
        folder: Path,
        seed: int = 5,
        resume: str | None = None,
        stop: int | None = None,
        workers: int = 0,
        **options: Any,
    ) -> detkit.FasterRCNN:
        model = small(roi__dropout=0.25, image__min_size=[48, 64])
        each = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        last = ModelCheckpoint(folder, "end", save_last=True, save_on_train_epoch_end=True, every_n_epochs=1)
        runner = trainer(**({"max_epochs": 2, "callbacks": [each, last, Stop(stop)]} | options))
        data = shapes(transforms=FLIPS, seed=seed, num_workers=workers)
        ckpt_path = None if resume is None else str(folder / f"{resume}.ckpt")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PL_GLOBAL_SEED", str(seed))  # as seed_everything does
            torch.manual_seed(seed)
            runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return model

    return run


class Whole(NamedTuple):
    """An uninterrupted run of 2 epochs of 4 steps."""

    model: detkit.FasterRCNN
    folder: Path

    @property
    def state(self) -> State:
        return self.model.state_dict()


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(fit(folder), folder)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    assert not differing(whole.state, fit(tmp_path).state_dict())
    first, second = (torch.load(f / "step=8.ckpt", weights_only=True) for f in (whole.folder, tmp_path))
    momenta = [c["optimizer_states"][0]["state"].values() for c in (first, second)]
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(*momenta, strict=True))


def test_another_seed_gives_other_weights(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    assert "roi_heads.box_head.fc6.weight" in differing(whole.state, fit(tmp_path, seed=6).state_dict())


def test_one_epoch_and_then_another_equal_two(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        fit(tmp_path, stop=5)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not differing(whole.state, fit(tmp_path, resume="last").state_dict())


@pytest.mark.parametrize(("steps", "workers"), [(2, 0), (4, 0), (7, 0), (6, 1)])
def test_a_run_killed_at_any_step_goes_on_exactly(
    whole: Whole, fit: Fit, tmp_path: Path, steps: int, workers: int
) -> None:
    name = f"step={steps}"
    (tmp_path / f"{name}.ckpt").write_bytes((whole.folder / f"{name}.ckpt").read_bytes())
    resumed = fit(tmp_path, resume=name, workers=workers)
    assert (tmp_path / "step=8.ckpt").exists() and not (tmp_path / f"step={steps - 1}.ckpt").exists()
    assert not differing(whole.state, resumed.state_dict())


def test_an_exception_leaves_what_was_saved(whole: Whole, fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        fit(tmp_path, stop=3)
    here, there = (torch.load(f / "step=2.ckpt", weights_only=True)["state_dict"] for f in (tmp_path, whole.folder))
    assert not differing(here, there)
    assert differing(whole.state, here)
