"""Losses that are not finite stop a fit, with the images named and the last good checkpoint kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.data import Shapes
from detkit.engine.module import LossGuard, check_finite
from detkit.errors import TrainingError
from tests.detectors.conftest import Small

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`")


def losses(bad: float | None = None) -> dict[str, torch.Tensor]:
    return {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.0 if bad is None else bad)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_batch_that_was_not_finite_is_named(bad: float) -> None:
    guard = LossGuard(interval=10)
    guard.watch(losses(), [{"image_id": 1}])
    with pytest.raises(TrainingError, match=r"loss_b became NaN or infinite in the batch of images \['x', 7\]"):
        guard.watch(losses(bad), [{"image_id": "x"}, {"image_id": 7}])
    guard.check()  # told once


def test_on_a_device_losses_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stalls a device: it is done every so many steps, and before anything is saved."""
    guard = LossGuard(interval=3)
    finite = torch.isfinite

    class OnDevice:
        """A result that is still on its way."""

        device = torch.device("cuda")

        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def __getattr__(self, name: str) -> Any:
            return getattr(self.values, name)

    monkeypatch.setattr(torch, "isfinite", lambda values: OnDevice(finite(values)))
    guard.watch(losses(float("nan")), [{"image_id": 1}])
    guard.watch(losses(), [{"image_id": 2}])
    with pytest.raises(TrainingError, match=r"images \[1\]"):
        guard.watch(losses(float("nan")), [{"image_id": 3}])
    guard.watch(losses(float("nan")), [{"image_id": 4}])
    with pytest.raises(TrainingError, match=r"images \[4\]"):
        guard.check()


def test_weights_that_are_not_finite_are_not_saved() -> None:
    state = {"a": torch.ones(2), "count": torch.tensor(3), "b": torch.tensor([1.0, float("inf")])}
    with pytest.raises(TrainingError, match=r"1 weights became NaN or infinite \(b"):
        check_finite(state)
    check_finite({"a": torch.ones(2), "count": torch.tensor(3)})


def spoil(model: detkit.FasterRCNN, when: Callable[[list[dict[str, Any]]], bool]) -> None:
    honest = model.losses

    def spoiled(batch: list[dict[str, Any]], encoded: Any = None) -> dict[str, torch.Tensor]:
        found = honest(batch, encoded)
        return found | {"loss_box_reg": found["loss_box_reg"] * float("nan")} if when(batch) else found

    model.losses = spoiled


def test_a_fit_stops_and_keeps_the_last_good_checkpoint(
    small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    model = small()
    culprits: list[list[str]] = []

    def second_epoch(batch: list[dict[str, Any]]) -> bool:
        if runner.current_epoch == 1 and model.training and runner.global_step >= 6:
            culprits.append([sample["image_id"] for sample in batch])
            return True
        return False

    spoil(model, second_epoch)
    saved = ModelCheckpoint(tmp_path, filename="best", save_last=True, monitor="val/map", mode="max")
    runner = trainer(max_epochs=3, callbacks=[saved])
    with pytest.raises(TrainingError) as caught:
        runner.fit(model, datamodule=shapes())
    assert len(culprits) == 1 and len(culprits[0]) == 2
    assert f"loss_box_reg became NaN or infinite in the batch of images {culprits[0]}" in str(caught.value)
    for name in ("best.ckpt", "last.ckpt"):
        kept = torch.load(tmp_path / name, weights_only=True)
        assert kept["epoch"] == 0 and kept["global_step"] == 4
        assert all(v.isfinite().all() for v in kept["state_dict"].values())
    assert all(p.isfinite().all() for p in model.parameters())  # the step was not taken


def test_a_validation_that_is_not_finite_stops_too(
    small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer]
) -> None:
    model = small()
    spoil(model, lambda batch: not model.training and any(s["image_id"] == "val_00002" for s in batch))
    with pytest.raises(TrainingError, match="val_00002"):
        trainer(max_epochs=1).fit(model, datamodule=shapes())


def test_weights_spoilt_by_a_gradient_are_not_saved(
    small: Small, shapes: Callable[..., Shapes], trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """A finite loss may have a gradient that is not."""
    model = small()

    class Spoil(L.Callback):
        def on_before_optimizer_step(self, runner: L.Trainer, *_: Any) -> None:
            if runner.global_step == 5:
                model.rpn.head.cls_logits.bias.grad.fill_(float("inf"))

    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    with pytest.raises(TrainingError):
        trainer(max_epochs=2, callbacks=[Spoil(), saved], limit_val_batches=0).fit(model, datamodule=shapes())
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step=2.ckpt", "step=4.ckpt"]
