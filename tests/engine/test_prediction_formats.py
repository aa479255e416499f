from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from detkit.data import YOLO
from detkit.engine.prediction_formats import FORMATS, MARK, Classes, Predicted

NAMES = ["cat", "big dog", "Kuh: bunt"]
CLASSES = Classes(NAMES, [7, 90, 3])
number = st.floats(0, 1, width=32)


def _box(x: float, y: float, width: float, height: float) -> list[float]:
    values = np.array([x, y, x + (1 - x) * max(width, 0.1), y + (1 - y) * max(height, 0.1)])
    return [float(str(np.float32(value))) for value in values * [640, 480, 640, 480]]


@st.composite
def images(draw: st.DrawFn) -> list[Predicted]:
    found = []
    for name in ("a.jpg", "in deep/b c.png", "ü.jpg"):
        boxes = draw(st.lists(st.builds(_box, *[st.floats(0, 0.9), st.floats(0, 0.9), number, number]), max_size=3))
        scores = sorted((float(str(np.float32(draw(number)))) for _ in boxes), reverse=True)
        found.append(Predicted(name, name, (640, 480), boxes, scores, [draw(st.integers(1, 3)) for _ in boxes]))
    return found


def write(name: str, found: list[Predicted], folder: Path) -> Path:
    path = folder / f"out{FORMATS[name].suffix}"
    FORMATS[name].write(found, path, CLASSES)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@given(images())
@settings(max_examples=25)
def test_coco_is_read_by_pycocotools(folder: Path, found: list[Predicted]) -> None:
    rows = json.loads(write("coco", found, folder).read_text())
    assert [row["image_id"] for row in rows] == [image.file for image in found for _ in image.boxes]
    assert [row["category_id"] for row in rows] == [CLASSES.ids[k - 1] for image in found for k in image.labels]
    truth = COCO()
    truth.dataset = {"images": [{"id": image.file} for image in found], "categories": [], "annotations": []}
    truth.createIndex()
    if rows:
        x, y, width, height = np.array([row["bbox"] for row in truth.loadRes(rows).dataset["annotations"]]).T
        boxes = np.array([box for image in found for box in image.boxes])
        np.testing.assert_allclose(np.stack([x, y, x + width, y + height], 1), boxes, atol=1e-4)


@given(images())
@settings(max_examples=25)
def test_csv_keeps_every_digit(folder: Path, found: list[Predicted]) -> None:
    with write("csv", found, folder).open(encoding="utf-8", newline="") as file:
        table = [[row[0], *map(float, row[1:5]), row[5], float(row[6])] for row in list(csv.reader(file))[1:]]
    assert table == [[image.file, *box, NAMES[k - 1], score] for image in found for box, score, k in image.rows()]


@given(images())
@settings(max_examples=25)
def test_yolo_is_read_by_our_reader(tmp_path_factory: pytest.TempPathFactory, found: list[Predicted]) -> None:
    root = tmp_path_factory.mktemp("yolo")
    write("yolo", found, root).rename(root / "labels")
    for image in found:
        path = root / "images" / image.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", image.size).save(path.with_suffix(".png"))
    data = YOLO(str(root), num_workers=0, split=[1.0, 0.0, 0.0])
    annotations = data.annotations("train")
    assert data.class_names == NAMES and len(annotations) == 3
    for image in found:
        index = annotations.files.tolist().index(f"images/{Path(image.file).with_suffix('.png')}")
        fields = annotations.fields(index)
        assert fields["labels"].tolist() == image.labels
        np.testing.assert_allclose(fields["boxes"], np.array(image.boxes).reshape(-1, 4), atol=0.01)


def test_yolo_keeps_names_apart_and_within_the_folder(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "../../up.jpg", "/etc/c.jpg", "classes.jpg", "d\\e.jpg"]
    path = write("yolo", [Predicted(name, name, (10, 10), [], [], []) for name in names], tmp_path)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.txt"))
    expected = ["a.png.txt", "a.txt", "classes.jpg.txt", "classes.txt", "d/e.txt", "etc/c.txt", "up.txt"]
    assert files == [f"{path.name}/{name}" for name in expected] and (path / MARK).is_file()


def test_voc_is_the_devkits(tmp_path: Path) -> None:
    found = [Predicted("in/b c.png", "in/b c.png", (640, 480), [[0.0, 1.5, 640.0, 20.0]], [0.5], [2])]
    path = write("voc", [*found, Predicted("000007", "x.jpg", (9, 9), [[0.0, 0.0, 3.0, 4.0]], [0.25], [1])], tmp_path)
    assert (
        path / "comp4_det_test_big dog.txt"
    ).read_text() == "in/b c 0.500000 1.000000 2.500000 640.000000 20.000000\n"
    assert (path / "comp4_det_test_cat.txt").read_text() == "000007 0.250000 1.000000 1.000000 3.000000 4.000000\n"
    assert (path / "comp4_det_test_Kuh: bunt.txt").read_text() == ""


def test_label_studio_has_percent(tmp_path: Path) -> None:
    found = [Predicted("in/b.png", "in/b.png", (640, 480), [[64.0, 48.0, 320.0, 480.0]], [0.5], [2])]
    (task,) = json.loads(write("label_studio", found, tmp_path).read_text())
    assert task["data"] == {"image": "/data/local-files/?d=in/b.png"}
    (result,) = task["predictions"][0]["result"]
    value = {"x": 10, "y": 10, "width": 40, "height": 90, "rotation": 0, "rectanglelabels": ["big dog"]}
    assert result["value"] == value and (result["type"], result["score"]) == ("rectanglelabels", 0.5)
    assert (result["original_width"], result["original_height"]) == (640, 480)


def test_a_name_that_is_a_formula_is_quoted(tmp_path: Path) -> None:
    image = Predicted("=1+1.jpg", "=1+1.jpg", (9, 9), [[0.0, 0.0, 3.0, 4.0]], [0.5], [1])
    path = write("csv", [image], tmp_path)
    assert path.read_text().splitlines()[1] == "'=1+1.jpg,0.0,0.0,3.0,4.0,cat,0.5"
