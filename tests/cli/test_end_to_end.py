"""The real thing, small: Shapes and Faster R-CNN through fit, test and predict, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.cli.main import main
from tests.cli.conftest import SMALL


def detkit(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "detkit", *args]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run in runs/small."""
    folder = tmp_path_factory.mktemp("end_to_end")
    (folder / "small.yaml").write_text(SMALL)
    result = detkit(folder, "fit", "--config", "small.yaml")
    assert result.returncode == 0, result.stderr
    # What comes through the filters is worth reading; here only that the pictures were drawn.
    drawn = "Shapes: shapes is not there; drawing it: 6 train, 3 val, 5 test, 64 px a side, drawing_seed 0\n"
    assert result.stderr == drawn
    return folder


def test_test_writes_the_metrics_of_every_image(run: Path) -> None:
    result = detkit(run, "test", "--ckpt_path", "runs/small")
    assert (result.returncode, result.stderr) == (0, "")
    metrics = json.loads((run / "runs/small/version_0/report/metrics.json").read_text())
    assert metrics["num_images"] == 5
    assert metrics["protocol"].startswith("COCO")
    assert set(metrics["map_per_class"]) == {"circle", "rectangle", "ring", "star", "triangle"}
    assert metrics["protocol"] in result.stdout.replace("\n", " ").replace("  ", " ")


def test_predict_as_printed_in_the_help(run: Path) -> None:
    photos = next((run / "shapes").rglob("JPEGImages"))
    result = detkit(run, "predict", "runs/small", str(photos), "--draw", "--score_threshold", "0")
    assert (result.returncode, result.stderr) == (0, "")
    version = run / "runs/small/version_0"
    files = {p.name for p in photos.iterdir()}
    assert {row["image_id"] for row in json.loads((version / "predictions.json").read_text())} <= files
    assert len(list((version / "predictions").iterdir())) == len(files)


@pytest.mark.slow
def test_images_that_fit_a_tile_give_the_same_numbers(run: Path) -> None:
    numbers = []
    for options in ([], ["--tiles", "64"]):
        assert detkit(run, "test", "runs/small", *options, "--output", "tiles").returncode == 0
        numbers.append(json.loads((run / "tiles/metrics.json").read_text()))
    assert numbers[0] == numbers[1]
    result = detkit(run, "predict", "runs/small", "shapes", "--tiles", "40", "--overlap", "0.5", "--output", "cut")
    assert (result.returncode, result.stderr) == (0, "")
    assert len(json.loads((run / "cut/predictions.json").read_text())) > 5


@pytest.mark.slow
def test_two_processes_fit_test_and_predict(run: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    root = ["--trainer.default_root_dir", "runs/two"]
    fit = detkit(run, "fit", "--config", "small.yaml", *two, *root)
    assert (fit.returncode, fit.stderr) == (0, "")
    assert [p.name for p in (run / "runs/two").iterdir()] == ["version_0"]
    written, found = run / "runs/two/version_0/report/metrics.json", []
    for processes in (two, []):
        result = detkit(run, "test", "--ckpt_path", "runs/two", *processes)
        assert (result.returncode, result.stderr) == (0, "")
        found.append(json.loads(written.read_text()))
    # Five images on two processes: the sampler pads, the metric counts each image once.
    assert found[0]["map_per_class"] == pytest.approx(found[1]["map_per_class"], abs=1e-4)
    assert found[0]["num_images"] == found[1]["num_images"] == 5
    predict = detkit(run, "predict", "--ckpt_path", "runs/two", *two)
    assert (predict.returncode, predict.stderr) == (0, "")
    rows = json.loads((run / "runs/two/version_0/predictions.json").read_text())
    keys = [(row["image_id"], *row["bbox"], row["score"], row["category_id"]) for row in rows]
    assert len(keys) == len(set(keys))


def test_a_recipe_that_clips_gradients_trains_in_mixed_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning clips no gradients of a fused optimizer in mixed precision."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETKIT_SLOW_PRECISION", "1")  # also on a CPU without bfloat16
    few = ["--data.num_train", "4", "--data.num_val", "1", "--data.num_test", "1", "--data.image_size", "64"]
    options = ["--trainer.precision", "bf16-mixed", "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true"]
    assert main(["fit", "--config", "shapes/faster_rcnn", *options, *few]) == 0, capsys.readouterr().err
