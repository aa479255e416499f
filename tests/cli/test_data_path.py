"""`--data PATH`: the real program on a folder of photographs with XML files, as labelImg writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.cli.arguments import read_arguments, read_config
from detkit.data.voc_xml import VOCObject, format_annotation
from detkit.errors import DataError

TINY = ["--model", "FasterRCNN", "--model.backbone", "tiny", "--model.weights", "null", "--model.features.fpn", "false"]
TINY += ["--model.image.min_size", "64", "--model.image.max_size", "64", "--model.roi.head_channels", "16"]
TINY += ["--model.anchors.sizes", "[[16, 32]]", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        text = format_annotation(f"{number}.jpg", 64, 48, [VOCObject("cat", (4, 4, 30, 30), False)])
        (folder / f"{number}.xml").write_text(text)
    return folder


def test_from_a_folder_to_a_report(program: Callable[..., Any], photos: Path) -> None:
    fit = program("fit", *TINY, "--data", str(photos), "--trainer.max_epochs", "1")
    assert fit.code == 0, fit.err
    assert f"data: {photos} is read as VOC: XML annotations such as" in fit.out
    run = Path("runs/FasterRCNN/version_0")
    division = json.loads((run / "split.json").read_text())
    assert {split: len(files) for split, files in division.items()} == {"train": 8, "val": 1, "test": 1}
    assert read_config(run / "config.yaml")["data"]["init_args"]["sets"] == str((run / "split.json").absolute())
    # An image that came later changes no set of the run.
    for suffix in ("jpg", "xml"):
        (photos / f"00.{suffix}").write_bytes((photos / f"0.{suffix}").read_bytes())
    test = program("test", "--ckpt_path", "runs/FasterRCNN")
    assert test.code == 0 and "1 image" in test.out, test.err
    predict = program("predict", "--ckpt_path", "runs/FasterRCNN", "--model.detection.score_threshold", "0.0")
    assert predict.code == 0 and "images: the test set of " in predict.out, predict.err
    ids = {row["image_id"] for row in json.loads((run / "predictions.json").read_text())}
    assert ids == {Path(file).stem for file in division["test"]}


def test_a_config_may_have_a_path_too(photos: Path, tmp_path: Path) -> None:
    for number, data in enumerate((str(photos), {"class_path": str(photos), "init_args": {"batch_size": 3}})):
        file = tmp_path / f"{number}.yaml"
        file.write_text(json.dumps({"data": data}))
        arguments = read_arguments(["--config", str(file)])
        (section,) = [content["data"] for _, content in arguments.files]
        assert section["class_path"] == "VOC" and section["init_args"]["path"] == str(photos)
        assert section["init_args"].get("batch_size") == (3 if number else None)
        assert arguments.notes[0].startswith(f"data: {photos} is read as VOC")


def test_what_is_no_path_stays(photos: Path) -> None:
    options = ["--data", "VOC", "--data.path", str(photos), "--data={}", "--data", "my_module.Cells"]
    assert read_arguments(options).options == options


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set is known here"):
        read_arguments(["--data", str(tmp_path)])
    with pytest.raises(DataError, match="no such file or folder"):
        read_arguments(["--data", str(tmp_path / "nowhere")])


def test_two_layouts_that_fit_are_an_error(program: Callable[..., Any], photos: Path) -> None:
    (photos / "labels.csv").write_text("image,xmin,ymin,xmax,ymax,class\n0.jpg,1,2,30,40,cat\n")
    result = program("fit", *TINY, "--data", str(photos))
    assert result.code == 2 and "may be read as VOC (XML annotations such as" in result.err
    assert f"--data VOC --data.path {photos} or --data CSV --data.path {photos}" in result.err
