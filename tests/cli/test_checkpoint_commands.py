"""validate, test and predict: everything but the data comes from the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Detkit = Callable[..., Any]
RUN = Path("runs/toy/version_0")


class Harm:
    """Any class of an imported module."""

    def __init__(self, *args: Any) -> None:
        Path("harmed").touch()


@pytest.fixture
def trained(detkit: Detkit) -> Detkit:
    """A run of one epoch lies in runs/toy."""
    assert detkit("fit", "--config", "toy.yaml", "--trainer.max_epochs", "1", "--model.width", "6").code == 0
    return detkit


def test_validate_prints_the_metric_and_keeps_the_run_as_it_is(trained: Detkit) -> None:
    before = {p: p.stat().st_mtime_ns for p in RUN.rglob("*")}
    # A run, a version or a file will do.
    for given, found in (("runs/toy", "best"), (str(RUN), "best"), (f"{RUN}/checkpoints/last.ckpt", "last")):
        result = trained("validate", "--ckpt_path", given)
        assert (result.code, result.err) == (0, "")
        assert f"checkpoint: {RUN}/checkpoints/{found}.ckpt" in result.out
        assert "COCO, toy" in result.out
    assert {p: p.stat().st_mtime_ns for p in RUN.rglob("*")} == before


def test_a_config_may_name_the_data_and_what_a_fit_needs(trained: Detkit) -> None:
    Path("toy.yaml").write_text(Path("toy.yaml").read_text() + "checkpoint: {monitor: val/loss, mode: min}\n")
    options = ["--data.size", "2", "--model.optim.lr", "0.5"]
    result = trained("test", "--config", "toy.yaml", "--ckpt_path", "best", *options)
    assert result.code == 0 and "model.optim.lr" in result.out
    assert json.loads((RUN / "report/metrics.json").read_text())["num_images"] == 2


def test_the_architecture_comes_from_the_checkpoint_not_from_the_config(trained: Detkit) -> None:
    config = Path("toy.yaml").read_text().replace("optim: {lr: 0.05}", "width: 9")
    Path("toy.yaml").write_text(config)
    result = trained("test", "--config", "toy.yaml", "--ckpt_path", "runs/toy")
    assert result.code == 0
    row = next(line for line in result.out.splitlines() if "model.width" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["model.width", "6", "9", "checkpoint"]


def test_no_weights_are_looked_for(trained: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    path = RUN / "checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["weights"] = "DEFAULT"
    torch.save(content, path)
    seen = []
    from tests.cli import fakes

    monkeypatch.setattr(fakes.Tiny, "test_step", lambda self, batch, i: seen.append(self.hparams.weights))
    assert trained("test", "--ckpt_path", str(path)).code == 0
    assert set(seen) == {None}


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler"])
def test_an_optimizer_that_a_checkpoint_names_is_not_called(trained: Detkit, name: str) -> None:
    path = RUN / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"][name] = {"class_path": f"{__name__}.Harm", "init_args": {}}
    torch.save(content, path)
    for command in ("validate", "test", "predict", "fit"):
        options = ["--trainer.max_epochs", "2"] if command == "fit" else []
        assert trained(command, "--ckpt_path", str(path), *options).code == 0
        assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("pytorch-lightning_version", []),
        ("global_step", None),
        ("loops", ""),
        ("loops.fit_loop.epoch_progress.current.processed", "x"),
        ("loops.fit_loop.epoch_progress", [1]),
        ("callbacks", ["a"]),
        ("callbacks.BEST.best_model_score", "x"),
        ("callbacks.BEST.best_model_path", 5),
        ("optimizer_states", [[None]]),
        ("optimizer_states.0.param_groups.0.params", [5]),
        ("optimizer_states.0.param_groups.0.lr", float("nan")),
        ("optimizer_states.0.state.0.momentum_buffer", -1),
        ("optimizer_states.0.state.0.momentum_buffer", torch.zeros(3)),
        ("lr_schedulers", {}),
        ("lr_schedulers.0.base_lrs", 7),
        ("hyper_parameters.optim", 5),
    ],
)
def test_a_fit_refuses_a_state_of_another_form(trained: Detkit, entry: str, value: Any) -> None:
    content = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    best = next(name for name in content["callbacks"] if name.startswith("BestCheckpoint"))
    *parents, last = (best if part == "BEST" else part for part in entry.split("."))
    parent = content
    for part in parents:
        parent = parent[int(part) if part.isdigit() else part]
    parent[last] = value
    torch.save(content, "changed.ckpt")
    result = trained("fit", "--config", "toy.yaml", "--ckpt_path", "changed.ckpt")
    assert result.code == 2 and len(result.err.splitlines()) <= 3
    assert "changed.ckpt" in result.err or "model.optim is a group of settings" in result.err


def test_contradicting_class_names_are_refused(trained: Detkit) -> None:
    result = trained("test", "--ckpt_path", "runs/toy", "--data.class_names", "[dog, cat]")
    assert result.code == 2
    assert "['dog', 'cat']" in result.err
    assert "['cat', 'dog']" in result.err
    assert trained("test", "--ckpt_path", "runs/toy", "--data.class_names", "[cat, dog]").code == 0


def test_without_the_runs_config_data_must_be_named(trained: Detkit) -> None:
    (RUN / "config.yaml").unlink()
    result = trained("test", "--ckpt_path", "runs/toy")
    assert result.code == 2
    assert "--data" in result.err
    assert trained("test", "--ckpt_path", "runs/toy", "--data", "Numbers").code == 0


def test_predict_streams_coco_results_with_the_original_ids(trained: Detkit) -> None:
    result = trained("predict", "--ckpt_path", "runs/toy", "--data", "Photos", "--data.path", "photos/")
    assert result.code == 0
    assert result.err == ""
    rows = json.loads((RUN / "predictions.json").read_text())
    assert rows[0] == {"image_id": "a.jpg", "category_id": 17, "bbox": [1.0, 2.0, 4.0, 7.0], "score": 0.9}
    assert [r["image_id"] for r in rows] == [n for n in ("a.jpg", "b/a.jpg", "../../escape.png") for _ in range(2)]
    assert not list(RUN.glob(".*"))


def test_pycocotools_reads_the_predictions(trained: Detkit) -> None:
    from pycocotools.coco import COCO

    assert trained("predict", "--ckpt_path", "runs/toy", "--predictions.output", "out").code == 0
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": 12, "height": 12} for i in range(4)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes("out/predictions.json").anns) == 8


def test_drawn_images_stay_in_their_folder(trained: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    import detkit as package

    shown: list[int] = []

    def draw(image: Any, detections: Any, class_names: Any, score_threshold: float) -> Image.Image:
        shown.append(int((detections["scores"] >= score_threshold).sum()))
        return Image.new("RGB", (4, 4))

    monkeypatch.setitem(vars(package), "draw", draw)
    options = ["--predictions.draw", "true", "--predictions.output", "out", "--predictions.score_threshold", "0.5"]
    result = trained("predict", "--ckpt_path", "runs/toy", "--data", "Photos", "--data.path", "photos/", *options)
    assert result.code == 0
    assert shown == [1, 1, 1]
    assert "(3 of 3 detections, those from a score of 0.5 (--score_threshold))" in result.out
    names = sorted(str(p) for p in Path().rglob("*.jpg"))
    assert names == [f"out/predictions/{n}.jpg" for n in ("_.._escape.png", "a", "b_a")]


def test_a_report_is_written_by_test(trained: Detkit) -> None:
    result = trained("test", "--ckpt_path", "runs/toy")
    assert result.code == 0
    assert f"report: {RUN / 'report/index.html'}" in result.out
    assert "not counted: 1,234 detections beyond the 100 best of their image and class" in result.out
    assert "<html" in (RUN / "report/index.html").read_text()
    assert (RUN / "report/per_class.csv").read_text().count("\n") >= 3
    assert "COCO, toy" in result.out
    assert "AP dog" in result.out
    metrics = json.loads((RUN / "report/metrics.json").read_text())
    expected = {"map": 0.25, "map_large": None, "map_per_class": {"cat": 0.25, "dog": 0.25}, "num_images": 4}
    expected |= {"checkpoint": str(RUN / "checkpoints/best.ckpt"), "data": "Numbers(nowhere)", "protocol": "COCO, toy"}
    assert metrics | expected == metrics


def test_what_is_replaced_is_told(trained: Detkit) -> None:
    for command, option, written in (
        ("test", "--output", "report/index.html"),
        ("predict", "--output", "predictions.json"),
    ):
        first, second, elsewhere = (
            trained(command, "--ckpt_path", "runs/toy", *more) for more in ([], [], [option, f"{command}-elsewhere"])
        )
        assert f"{RUN / written}\n" in first.out
        assert f"{RUN / written} (instead of an earlier one; {option} FOLDER keeps both)\n" in second.out
        assert "instead of" not in elsewhere.out


def test_a_report_compares_with_a_baseline_and_goes_where_it_is_told(trained: Detkit) -> None:
    trained("test", "--ckpt_path", "runs/toy", "--output", "first")
    assert not (RUN / "report").exists()
    for baseline in ("first/metrics.json", "first"):  # the file, or the folder that it is in
        result = trained("test", "--ckpt_path", "runs/toy", "--baseline", baseline, "--output", "second")
        assert result.code == 0
        assert "baseline: AP 0.250 -> 0.250 (+0.0 [+0.0, +0.0])" in result.out
        assert "aseline" in Path("second/index.html").read_text()
    assert "aseline" not in Path("first/index.html").read_text()
    # One of other data.
    content = json.loads(Path("first/metrics.json").read_text())
    Path("first/metrics.json").write_text(json.dumps(content | {"protocol": "VOC07, toy"}))
    result = trained("test", "--ckpt_path", "runs/toy", "--baseline", "first", "--output", "second")
    assert "not comparable? The protocols differ" in " ".join(result.out.split())
    assert "points against the baseline" not in Path("second/index.html").read_text()  # no change beside the numbers


def test_wrong_options_of_the_report_are_told(trained: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli import fakes

    Path("other.json").write_text("[]")
    monkeypatch.setattr(fakes.Tiny, "test_step", lambda *_: pytest.fail("tested all the same"))
    for option, value, told in (
        ("baseline", "nowhere", "baseline nowhere: there is no such file"),
        ("baseline", "other.json", "the file is to hold the metrics of a report"),
        ("score_threshold", "7", "scores go from 0 to 1"),
    ):
        result = trained("test", "--ckpt_path", "runs/toy", f"--{option}", value)
        assert result.code == 2 and told in result.err
