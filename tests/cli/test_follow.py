"""A run one can follow, by the real command line: a fit, one that goes on from it, and a test of it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.detectors import FasterRCNN
from detkit.errors import TrainingError
from tests.cli.conftest import SMALL

RUN = Path("runs/small")


def test_a_fit_tells_and_draws_what_it_does(program: Callable[..., Any]) -> None:
    Path("small.yaml").write_text(SMALL)
    result = program("fit", "--config", "small.yaml", "--trainer.log_every_n_steps", "1")
    assert (result.code, result.err) == (0, "")
    first = RUN / "version_0"
    assert result.out.endswith(f"next: detkit test {first}\n      detkit predict {first} PHOTOS\n")
    assert "backbone.body" not in result.out and "backbone.body.0" in (first / "network.txt").read_text()
    result = program("fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1")
    assert (result.code, result.err) == (0, "")
    assert "epoch 2 of 2" in result.out
    second = RUN / "version_1"
    for name in ("train_batches.jpg", "val_predictions.jpg", "curves.svg", "README.md", "checkpoints/class_names.txt"):
        assert (first / name).is_file() and (second / name).is_file(), name

    header, *_ = csv.reader((second / "metrics.csv").open())
    assert {f"val/map_class/{name}" for name in ("circle", "rectangle", "ring", "star", "triangle")} <= set(header)
    names = (first / "checkpoints/class_names.txt").read_text()
    assert names == "circle\nrectangle\nring\nstar\ntriangle\n"
    card = (second / "README.md").read_text()
    assert "| Model | FasterRCNN, backbone tiny |" in card and "train: 6 images" in card
    assert f'detkit.load("{second}")' in card and "COCO" in card and "2 epochs, 6 steps" in card
    curves = [(folder / "curves.svg").read_text() for folder in (first, second)]
    points = [text.split('<polyline points="')[2].split('"')[0].split() for text in curves]  # of train/loss
    assert [len(each) for each in points] == [3, 6]  # that of the earlier run is joined

    result = program("test", str(RUN))
    assert (result.code, result.err) == (0, "")
    page = (second / "report/index.html").read_text()
    assert "How it was trained" in page and "data:image/svg+xml;base64," in page and "data:image/jpeg;base64," in page


@pytest.mark.parametrize("step", [0, 3])
def test_a_failure_within_the_first_step_leaves_no_folder(
    program: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Of an epoch of three steps; config, picture and checkpoint of a run that fails in the next one are kept."""
    Path("small.yaml").write_text(SMALL)
    losses = FasterRCNN.losses

    def failing(self: FasterRCNN, *args: Any) -> Any:
        if self.training and self.trainer.global_step == step:
            raise TrainingError("the loss is on strike")
        return losses(self, *args)

    monkeypatch.setattr(FasterRCNN, "losses", failing)
    result = program("fit", "--config", "small.yaml", "--trainer.max_epochs", "2")
    assert (result.code, result.err) == (2, "detkit: the loss is on strike\n")
    assert f"run: {RUN}/version_0" in result.out
    left = {path.name for path in RUN.rglob("*") if path.is_file()}
    assert (left == set()) if step == 0 else ({"config.yaml", "train_batches.jpg", "last.ckpt"} <= left)
    assert (RUN / "version_0").exists() == (step > 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--trainer.precision", "16-mixed"], "CPUs do not compute in float16"),
        (["--model.optim.lr", "-1"], "optim.lr"),
        (["--model.optim.milestones", "[0.5]", "--trainer.max_epochs", "-1"], "needs trainer.max_epochs or max_steps"),
    ],
)
def test_a_failed_start_leaves_no_folder(program: Callable[..., Any], options: list[str], told: str) -> None:
    Path("small.yaml").write_text(SMALL)
    result = program("fit", "--config", "small.yaml", *options)
    assert result.code == 2 and told in result.err
    assert not list(Path().glob("runs/*/version_*"))
