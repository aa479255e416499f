"""The model card: the numbers of the best checkpoint, what it was trained on, and commands that work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

import detkit
from detkit.data import Shapes
from detkit.engine.callbacks import BestCheckpoint
from detkit.engine.checkpoints import read_checkpoint
from detkit.engine.model_card import ModelCard
from detkit.signals import Stopped
from tests.detectors.conftest import Small

Shaped = Callable[..., Shapes]
Silent = Callable[..., L.Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device")
AP = [0.3, 0.6, 0.45]  # of the validations


@pytest.fixture
def numbered(small: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """`small`, of which the validation of epoch N has the mAP AP[N], and each class one that tells epoch and class."""
    original = detkit.FasterRCNN._log_metric

    def known(self: detkit.FasterRCNN, stage: str) -> None:
        compute = self.metric.compute

        def changed() -> dict[str, Any]:
            result, ap = compute(), AP[self.trainer.current_epoch]
            result["map"].fill_(ap)
            result["map_by_class"] = {name: ap + k / 1000 for k, name in enumerate(self.class_names)}
            return result

        self.metric.compute = changed
        try:
            original(self, stage)
        finally:
            self.metric.compute = compute

    monkeypatch.setattr(detkit.FasterRCNN, "_log_metric", known)
    return small


def fit(model: Any, data: Shapes, trainer: Silent, folder: Path, ckpt_path: Path | None = None, **options: Any) -> str:
    """Fit with a card and a best checkpoint in the folder; the card."""
    best = BestCheckpoint()
    best.dirpath = str(folder / "checkpoints")
    runner = trainer(
        callbacks=[best, ModelCard(folder)], default_root_dir=str(folder), enable_checkpointing=True, **options
    )
    runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if ckpt_path is None:
        runner.save_checkpoint(folder / "checkpoints/last.ckpt")
    return (folder / "README.md").read_text()


def test_it_has_the_numbers_of_the_best_checkpoint(
    numbered: Small, shapes: Shaped, trainer: Silent, tmp_path: Path
) -> None:
    """Not those of the last validation, and, of a run that goes on, those of the best of both."""
    first = tmp_path / "first"
    card = fit(numbered(), shapes(), trainer, first, max_epochs=2)
    assert read_checkpoint(first / "checkpoints/best.ckpt")["detkit"]["validation"]["map"] == pytest.approx(0.6)
    for told in (
        "- best checkpoint: map 0.6000, of epoch 2",
        "- 3 images",
        "| circle | 0.6000 |",
        "| triangle | 0.6040 |",
        "protocol: COCO",
    ):
        assert told in card
    assert "- map 0.6" not in card and "- map\\_50" not in card and "- map_50 " in card
    second = tmp_path / "second"
    card = fit(numbered(), shapes(), trainer, second, first / "checkpoints/last.ckpt", max_epochs=3)
    assert "- best checkpoint: map 0.6000, of epoch 2" in card and "| triangle | 0.6040 |" in card
    assert "0.4500" not in card and "3 epochs, 12 steps" in card


def test_it_says_what_it_is_and_how_it_is_used(
    numbered: Small, shapes: Shaped, trainer: Silent, tmp_path: Path
) -> None:
    data = shapes()
    card = fit(numbered(), data, trainer, tmp_path / "a run", max_epochs=1)
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", card, re.MULTILINE))
    assert rows["Model"] == "FasterRCNN, backbone tiny" and rows["Initial weights"] == "random"
    boxes = len(data.annotations("train").boxes)
    assert rows["Data"].endswith(
        f"train: 8 images, {boxes} boxes; val: 3 images, {len(data.annotations('val').boxes)} boxes"
    )
    assert rows["Classes"] == "5, in the order of their labels: circle, rectangle, ring, star, triangle"
    assert rows["Training"] == "1 epoch, 4 steps"
    assert f"detkit test '{tmp_path}/a run'" in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"photo.jpg"', "image"), {"image": data.dataset("val")[0]["image"]}, names)
    assert names["detector"].class_names == (tmp_path / "a run/checkpoints/class_names.txt").read_text().split()
    assert "boxes" in names["detections"]


def test_names_of_other_people_are_escaped(numbered: Small, shapes: Shaped, trainer: Silent, tmp_path: Path) -> None:
    names = ["a|b", "<script>", "[c](d)", "e\x1bf", "`g`"]
    card = fit(numbered(class_names=names), shapes(), trainer, tmp_path, max_epochs=1)
    assert r"a\|b" in card and r"\<script\>" in card and r"\[c\](d)" in card and r"\`g\`" in card
    assert "\x1b" not in card and "<script>" not in card.replace(r"\<script\>", "")


def test_without_a_validation_there_are_no_numbers(
    small: Small, shapes: Shaped, trainer: Silent, tmp_path: Path
) -> None:
    last = ModelCheckpoint(tmp_path / "checkpoints", filename="last")
    trainer(callbacks=[last, ModelCard(tmp_path)], max_epochs=1, limit_val_batches=0).fit(small(), datamodule=shapes())
    card = (tmp_path / "README.md").read_text()
    assert "No validation has chosen a best checkpoint" in card and "AP" not in card


@pytest.mark.parametrize("error", [Stopped, RuntimeError])
def test_a_stopped_run_has_a_card_and_a_failed_one_has_none(
    small: Small, shapes: Shaped, trainer: Silent, tmp_path: Path, error: type[BaseException]
) -> None:
    """Before the first checkpoint: that of a stopped run is written after its card."""

    class Stop(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise error("enough")

    with pytest.raises((SystemExit, RuntimeError)):
        trainer(callbacks=[ModelCard(tmp_path), Stop()], max_epochs=1).fit(small(), datamodule=shapes())
    assert (tmp_path / "README.md").exists() == (error is Stopped)
