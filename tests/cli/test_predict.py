"""`detkit predict RUN INPUT...` with a toy detector: inputs, choices, formats, and images that cannot be read."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.cli import lightning_cli
from detkit.cli.short_form import long_form
from detkit.data.datamodule import DetectionDataModule
from detkit.errors import ConfigError
from tests.cli import fakes

Detkit = Callable[..., Any]


@pytest.fixture
def predict(detkit: Detkit, monkeypatch: pytest.MonkeyPatch) -> Detkit:
    """`predict("photos", "--format", "csv")` by a run in runs/toy, in a folder with photos/a.png, b.png and sub/c.png.

    The toy detector finds a dog (0.9, box 1 2 5 9) and a cat (0.2, box 0 0 3 3) in each image.
    """
    assert detkit("fit", "--config", "toy.yaml").code == 0
    monkeypatch.setattr(lightning_cli, "base_classes", lambda: (fakes.Model, DetectionDataModule))
    for module in ("coco", "images"):  # which makes COCO and ImageFolder known
        importlib.import_module(f"detkit.data.{module}")
    for name in ("photos/a.png", "photos/b.png", "photos/sub/c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(name)
    return lambda *args: detkit("predict", "runs/toy", *args, "--output", "out", "--data.num_workers", "0")


def rows() -> list[dict[str, Any]]:
    return json.loads(Path("out/predictions.json").read_text())


def test_several_inputs(predict: Detkit) -> None:
    result = predict("photos/sub", "photos/b.png")
    assert (result.code, result.err) == (0, "")
    assert [row["image_id"] for row in rows()] == ["sub/c.png"] * 2 + ["b.png"] * 2


def test_a_list_on_standard_input(predict: Detkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/sub/c.png\nphotos/a.png\n"))
    assert predict("-").code == 0
    assert [row["image_id"] for row in rows()] == ["sub/c.png"] * 2 + ["a.png"] * 2


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], ["dog", "cat"]),
        (["--classes", "cat"], ["cat"]),
        (["--classes=dog,cat"], ["dog", "cat"]),
        (["--predictions.classes", '["dog"]'], ["dog"]),
        (["--score-threshold", "0.5"], ["dog"]),
        (["--score_threshold", "0.2"], ["dog", "cat"]),
        (["--agnostic_nms"], ["dog", "cat"]),  # an IoU of 0.06
    ],
)
def test_what_is_kept(predict: Detkit, options: list[str], kept: list[str]) -> None:
    result = predict("photos/a.png", *options)
    assert (result.code, result.err) == (0, "")
    assert [{17: "dog", 3: "cat"}[row["category_id"]] for row in rows()] == kept


def test_one_score_holds_for_files_and_pictures(predict: Detkit) -> None:
    result = predict("photos/a.png", "--draw", "--crops", "--score_threshold", "0.1")
    assert "drawn: out/predictions (2 of 2 detections, those from a score of 0.1 (--score_threshold))" in result.out
    crops = sorted(Path("out/crops").rglob("*.jpg"))
    assert [str(path) for path in crops] == ["out/crops/cat/a.png-2.jpg", "out/crops/dog/a.png-1.jpg"]
    assert [Image.open(path).size for path in crops] == [(3, 3), (4, 7)]
    result = predict("photos/a.png", "--crops")  # from 0.5, but all are written
    assert "cropped: out/crops (1 of 2 detections" in result.out and len(rows()) == 2
    assert [str(path) for path in Path("out/crops").rglob("*.jpg")] == ["out/crops/dog/a.png-1.jpg"]


@pytest.mark.parametrize(
    ("name", "written", "count"),
    [
        ("csv", "predictions.csv", 1),
        ("label_studio", "predictions_label_studio.json", 1),
        ("voc", "predictions_voc", 3),
        ("yolo", "predictions_yolo", 5),
    ],
)
def test_formats(predict: Detkit, name: str, written: str, count: int) -> None:
    result = predict("photos", "--format", name)
    assert (result.code, result.err) == (0, "") and f"predictions: out/{written}" in result.out
    assert [path.name for path in Path("out").iterdir()] == [written]
    assert sum(path.is_file() for path in Path("out").rglob("*")) == count
    assert "instead of an earlier one" in predict("photos", "--format", name).out


def test_files_of_other_images_do_not_stay(predict: Detkit) -> None:
    predict("photos", "--format", "yolo")
    predict("photos/a.png", "--format", "yolo")
    assert sorted(path.name for path in Path("out/predictions_yolo").rglob("*.txt")) == ["a.txt", "classes.txt"]


def test_a_folder_of_others_is_not_replaced(predict: Detkit) -> None:
    Path("out/predictions_yolo").mkdir(parents=True)
    Path("out/predictions_yolo/mine.txt").write_text("mine")
    result = predict("photos", "--format", "yolo")
    assert result.code == 2 and "out/predictions_yolo: was not written by detkit and would be replaced" in result.err
    assert Path("out/predictions_yolo/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["coco", "csv"])
def test_an_image_that_cannot_be_read_is_listed_at_the_end(predict: Detkit, name: str) -> None:
    Path("photos/aa.png").write_bytes(b"broken")
    result = predict("photos", "--format", name)
    assert result.code == 3 and result.err == ""
    last = result.out.splitlines()[-2:]
    assert last[0] == "skipped: 1 image that cannot be read (--on_bad_image error stops at the first):"
    assert last[1].startswith("  photos/aa.png: image cannot be read")
    if name == "coco":
        assert [row["image_id"] for row in rows()] == [n for n in ("a.png", "b.png", "sub/c.png") for _ in range(2)]


def test_what_is_not_read_is_told(predict: Detkit, caplog: pytest.LogCaptureFixture) -> None:
    Path("photos/notes.txt").write_text("notes")
    with caplog.at_level("INFO"):
        assert predict("photos").code == 0
    assert "not read: 1 .txt (notes.txt)" in caplog.text


def test_a_coco_set_is_predicted_on_with_its_own_ids(predict: Detkit) -> None:
    images = [{"id": 10 + i, "file_name": f, "width": 30, "height": 20} for i, f in enumerate(("a.png", "b.png"))]
    annotations = [{"id": 1, "image_id": 10, "category_id": 5, "bbox": [1, 1, 9, 9]}]
    categories = [{"id": 5, "name": "dog"}, {"id": 8, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path("photos/ann.json").write_text(json.dumps(content))
    for given in ("photos/ann.json", "photos"):
        result = predict(given)
        assert result.code == 0, result.err
        assert [row["image_id"] for row in rows()] == [10, 10, 11, 11]
        assert [row["category_id"] for row in rows()] == [5, 8, 5, 8]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["photos", "--classes", "cow"], "classes: there is no class 'cow'; there are: cat, dog"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["photos", "--score_threshold", "2"], "scores go from 0 to 1"),
        (["photos", "--every", "0"], "every: 0 must be at least 1"),
        (["photos", "--overlap", "0.1"], "--overlap is of the tiles that --tiles cuts an image into"),
        (["photos", "--tiles", "5"], "tiles: 5 must be at least 32"),
        (["photos", "--tiles", "100"], "--tiles is for detectors, not for a Tiny"),
    ],
)
def test_mistakes(predict: Detkit, args: list[str], message: str) -> None:
    result = predict(*args)
    assert result.code == 2 and message in result.err and result.err.count("\n") <= 3, result.err
    assert not Path("out").exists()


def test_inputs_may_stand_behind_the_options(predict: Detkit) -> None:
    result = predict("--format", "csv", "photos/b.png", "--draw", "photos/sub/c.png", "--classes", "dog")
    assert (result.code, result.err) == (0, "")
    assert [line.split(",")[0] for line in Path("out/predictions.csv").read_text().splitlines()[1:]] == [
        "b.png",
        "sub/c.png",
    ]


def test_the_long_form_of_other_commands() -> None:
    assert long_form("test", ["runs/a", "data/b", "--tiles", "800"]) == [
        "--ckpt_path=runs/a",
        "--data=data/b",
        "--tiles",
        "800",
    ]
    assert long_form("fit", ["--config", "x"]) == ["--config", "x"]
    assert long_form("test", ["--tiles", "800", "runs/a"]) == ["--ckpt_path=runs/a", "--tiles", "800"]
    assert long_form("predict", ["--draw", "false", "--ckpt_path", "runs/a"])[:2] == ["--predictions.draw", "false"]
    for command, args in (("fit", ["data/b"]), ("test", ["runs/a", "b", "c"])):
        with pytest.raises(ConfigError, match="takes"):
            long_form(command, args)
