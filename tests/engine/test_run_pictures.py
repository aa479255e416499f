"""Files of a fit from Python: what is drawn, that training does not notice it, and that no error of it ends a fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from PIL import Image

from detkit.data import Shapes
from detkit.detectors.base import log_names
from detkit.engine import run_pictures
from detkit.engine.model_card import ModelCard
from detkit.engine.progress import EpochLines
from detkit.engine.run_pictures import PredictionPicture, TrainBatchPicture
from tests.detectors.conftest import Small, differing, sample

Shaped = Callable[..., Shapes]
Silent = Callable[..., L.Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:.*overridden `transfer_batch_to_device")
SIZES = {"image__min_size": [48, 64], "image__max_size": 96}  # sizes are drawn at random


def test_drawing_changes_nothing_and_never_ends_a_fit(
    small: Small,
    shapes: Shaped,
    trainer: Silent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain, drawn = small(**SIZES), small(**SIZES)
    options = {"max_epochs": 2, "limit_val_batches": 2, "default_root_dir": str(tmp_path)}
    trainer(**options).fit(plain, datamodule=shapes())
    callbacks = [TrainBatchPicture(6), PredictionPicture(3)]
    trainer(callbacks=callbacks, **options).fit(drawn, datamodule=shapes())
    assert not differing(plain.state_dict(), drawn.state_dict())
    for name in (run_pictures.TRAIN_BATCHES, run_pictures.PREDICTIONS):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 240 and len(set(picture.resize((40, 40)).getdata())) > 50  # something is on it

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no pen\nand no paper")

    monkeypatch.setattr(run_pictures, "draw", fail)
    capsys.readouterr()
    broken = small(**SIZES)
    callbacks = [kind(folder=tmp_path / "broken") for kind in (TrainBatchPicture, PredictionPicture)]
    trainer(callbacks=callbacks, **options).fit(broken, datamodule=shapes())
    assert not differing(plain.state_dict(), broken.state_dict())
    out = capsys.readouterr().out
    assert out.count("warning: train_batches.jpg is not written: no pen\n") == 1
    assert not (tmp_path / "broken").exists()


def test_fast_dev_run_writes_nothing(small: Small, shapes: Shaped, trainer: Silent, tmp_path: Path) -> None:
    callbacks = [kind(folder=tmp_path / "run") for kind in (TrainBatchPicture, PredictionPicture, ModelCard)]
    trainer(callbacks=callbacks, fast_dev_run=True).fit(small(), datamodule=shapes())
    assert not (tmp_path / "run").exists()


def test_the_network_sees_the_image_in_its_own_size(small: Small) -> None:
    model = small(image__min_size=64, image__max_size=96)
    one = sample(32, 48, [[4, 8, 20, 24]], [2])
    (seen,) = model.network_view([one])
    assert seen["image"].shape == (3, 64, 96) and seen["boxes"].tolist() == [[8, 16, 40, 48]]
    same = sample(64, 80)
    assert (model.network_view([same])[0]["image"].int() - same["image"].int()).abs().max() <= 1


def test_a_line_of_an_epoch_has_its_own_numbers(
    small: Small, shapes: Shaped, trainer: Silent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses: list[float] = []

    class Listen(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, *_: object) -> None:
            losses.append(float(outputs["loss"]))

    fit = trainer(
        callbacks=[EpochLines(interval=0), Listen()], max_epochs=3, check_val_every_n_epoch=2, enable_progress_bar=True
    )
    fit.fit(small(), datamodule=shapes())
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch") and "  step" in line]
    assert [line.split("  ")[0] for line in epochs] == [f"epoch {n} of 3" for n in (1, 2, 3)]
    assert ["val/map" in line for line in epochs] == [False, True, False]
    for line, start in zip(epochs, (0, 4, 8), strict=True):
        assert f"train/loss {sum(losses[start : start + 4]) / 4:.4f}" in line
    assert sum(line.startswith("epoch 2 of 3: step 6 of 12, train/loss ") for line in lines) == 1


def test_names_of_classes_in_a_log() -> None:
    assert log_names(["cat", "traffic light", "a/b", "über", "traffic_light"]) == [
        "cat",
        "traffic_light_2",
        "a_b",
        "über",
        "traffic_light",
    ]
    names = log_names(["a b", "a_b", "a/b"])
    assert len(set(names)) == 3


def test_the_picture_takes_images_from_the_whole_set(tmp_path: Path) -> None:
    picture = PredictionPicture(count=4)
    picture.writes = True
    fit = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    fit.fit_loop.epoch_loop.val_loop._max_batches = [20]  # private, only here: there is no other way without a fit
    one = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}
    taken = []
    for batch_idx in range(20):
        before = len(picture._chosen)
        picture.on_validation_batch_end(fit, None, [{}, {}], [one, one], batch_idx)  # type: ignore[arg-type]
        taken += [batch_idx] * (len(picture._chosen) - before)
    assert taken == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("scores", "told", "is_drawn"),
    [
        ([0.9, 0.4], "Right: detections with a score of 0.5 or more", True),
        ([0.4, 0.2], "Right: detections with a score of 0.3 or more", True),
        ([0.06], "Right: detections with a score of 0.05 or more", True),
        ([0.04], "Right: no detection with a score of 0.05 or more", False),
        ([], "Right: no detection with a score of 0.05 or more", False),
    ],
)
def test_the_caption_says_which_detections_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float], told: str, is_drawn: bool
) -> None:
    captions: list[str] = []
    write = run_pictures._with_caption
    monkeypatch.setattr(run_pictures, "_with_caption", lambda *given: (captions.append(given[1]), write(*given))[1])
    picture = PredictionPicture(folder=tmp_path)
    one = {**sample(64, 64), "image": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(len(scores), 1)
    labels = torch.ones(len(scores), dtype=torch.int64)
    picture._chosen = [(one, {"boxes": boxes, "scores": torch.tensor(scores), "labels": labels})]  # type: ignore[list-item]
    fit = SimpleNamespace(checkpoint_callbacks=[], current_epoch=1, global_step=8)
    picture.on_validation_end(fit, SimpleNamespace(class_names=["cat"]))  # type: ignore[arg-type]
    assert captions == [f"validation after epoch 2, step 8. Left: ground truth. {told}"]
    with Image.open(tmp_path / run_pictures.PREDICTIONS) as page:
        assert page.width > 6 * len(captions[0])  # the caption is not cut
        right = page.crop((page.width // 2, run_pictures.CAPTION_HEIGHT, page.width, page.height))
        colours = right.convert("HSV").getchannel("S").getextrema()
        assert (colours[1] > 100) == is_drawn
