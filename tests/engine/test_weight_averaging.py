"""The moving average of the weights, in fits of a small detector."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.errors import CheckpointError, ConfigError
from tests.detectors.conftest import Small, differing

pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device`", "ignore:.*num_workers")


class Steps(L.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append(pl_module.rpn.head.cls_logits.weight.detach().clone())


Trainers = Callable[..., L.Trainer]
Data = Callable[..., Shapes]


def test_the_average_is_that_of_the_steps_by_hand(small: Small, shapes: Data, trainer: Trainers) -> None:
    model, watch = small(optim__ema=0.25, optim__warmup_steps=0), Steps()
    trainer(max_steps=4, limit_val_batches=0, callbacks=[watch]).fit(model, datamodule=shapes())
    average = watch.weights[0].double()  # the first step's are taken over
    for n, weights in enumerate(watch.weights[1:], 1):
        decay = min(0.25, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(model.rpn.head.cls_logits.weight.detach().double(), average, atol=1e-6, rtol=0)
    assert not torch.equal(watch.weights[-1], model.rpn.head.cls_logits.weight)


def test_a_checkpoint_has_the_average_and_a_resumed_run_is_equal(
    small: Small, shapes: Data, trainer: Trainers, tmp_path: Path
) -> None:
    def fit(epochs: int, path: Path | None = None) -> detkit.FasterRCNN:
        torch.manual_seed(0)
        model = small(optim__ema=0.5, optim__optimizer="adamw", optim__schedule="constant", optim__warmup_steps=0)
        runner = trainer(max_epochs=epochs, limit_val_batches=1)
        runner.fit(model, datamodule=shapes(), ckpt_path=path, weights_only=True)
        return model

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"epoch{trainer.current_epoch}.ckpt")

    torch.manual_seed(0)
    whole = small(optim__ema=0.5, optim__optimizer="adamw", optim__schedule="constant", optim__warmup_steps=0)
    trainer(max_epochs=2, limit_val_batches=1, callbacks=[Save()]).fit(whole, datamodule=shapes())
    file = tmp_path / "epoch0.ckpt"
    content = torch.load(file, weights_only=True)
    assert differing(content["state_dict"], content["current_model_state"])
    loaded = detkit.load(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*WeightAveraging")
        tested = small(optim__ema=0.5)
        trainer(limit_test_batches=1).test(tested, datamodule=shapes(), ckpt_path=file, weights_only=True)
    assert not differing(loaded.state_dict(), content["state_dict"])
    assert not differing(fit(2, file).state_dict(), whole.state_dict())
    content["current_model_state"] = {"x": torch.zeros(1)}
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="current_model_state"):
        fit(2, file)


def test_fits_of_several_stages_have_none(small: Small, shapes: Data, trainer: Trainers) -> None:
    model = small(optim__ema=0.5, training_scheme="alternating")
    with pytest.raises(ConfigError, match=r"optim\.ema: a fit of several stages"):
        trainer(max_steps=4).fit(model, datamodule=shapes())
