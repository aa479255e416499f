"""Data sets that are written and read again: the same images, boxes and classes, as far as the format holds them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

import detkit
from detkit.data import Annotations, AnnotationsBuilder, DetectionDataModule
from detkit.data.writers import FORMATS, NewSplit, round_boxes, shortest, yolo_shares
from detkit.errors import DataError

SIZES = [(40, 30), (375, 500), (3000, 1999), (7, 9001)]
#: Names that formats stumble over: YAML's words and signs, XML's signs, separators, other scripts.
CLASS_NAMES = ["no", "1.5", "null: a", 'a "quoted" one', "it's", "# x", "- y", "<a&b>", "a,b;c", "猫", "Füße 🐈", "~"]
FILES = ["a.png", "b c.png", "Käfer.png", "sub/猫 1.png", "x.y.png", "e #&,;'.PNG"]


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Annotations, list[str]]:
    """Annotations of images that are not there yet, and class names; each class has an object, no box is thin."""
    class_names = draw(st.lists(st.sampled_from(CLASS_NAMES), min_size=1, max_size=4, unique=True))
    files = draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=4, unique=True))
    builder = AnnotationsBuilder("")
    labels = [*range(1, len(class_names) + 1), *draw(st.lists(st.integers(1, len(class_names)), max_size=6))]
    sizes = [draw(st.sampled_from(SIZES)) for _ in files]
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        builder.image(7 * number + 3, file, *size)
    for label in labels:
        image = draw(st.integers(0, len(files) - 1))
        corners = []
        for side in sizes[image]:
            low = draw(st.one_of(st.just(0.0), st.floats(0, side - 3, width=32)))
            high = draw(st.one_of(st.just(float(side)), st.floats(low + 2.5, side)))
            corners.append((low, min(high, side)))
        (x1, x2), (y1, y2) = corners
        difficult = draw(st.booleans())
        builder.box(image, (x1, y1, x2, y2), label, difficult=difficult, area=draw(st.sampled_from([0.1, 77, 1e5 / 3])))
    return builder.build(), class_names


def write(annotations: Annotations, class_names: list[str], to: str, folder: Path, split: str = "train") -> list[str]:
    """A split with its images (white ones)."""
    sizes = np.stack([annotations.widths, annotations.heights], 1)
    new = NewSplit(split, annotations, annotations.files.tolist(), sizes, range(5, 5 + len(class_names)))
    folder.mkdir(parents=True, exist_ok=True)
    for file, size in zip(new.files, sizes.tolist(), strict=True):
        path = folder / FORMATS[to].folder_of(split) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1", size, 1).save(path)
    return FORMATS[to].write(folder, [new], class_names)


def objects(data: DetectionDataModule | list[str], annotations: Annotations, *columns: str) -> dict[str, Any]:
    """File -> class names, boxes and other columns, whatever the order of images and classes is."""
    names = data if isinstance(data, list) else data.class_names
    found = {}
    for index, file in enumerate(annotations.files.tolist()):
        fields = annotations.fields(index)
        for folder in ("images/train/", "JPEGImages/"):
            file = file.removeprefix(folder)
        of_class = [names[label - 1] for label in fields["labels"]]
        size = (int(annotations.widths[index]), int(annotations.heights[index]))
        found[file] = (size, of_class, fields["boxes"], *(fields[name].tolist() for name in columns))
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for file, (size, names, boxes, *rest) in one.items():
        assert (size, names, rest) == (other[file][0], other[file][1], list(other[file][3:]))
        np.testing.assert_allclose(boxes, other[file][2], rtol=0, atol=atol)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=data_sets())
@pytest.mark.parametrize("to", list(FORMATS))
def test_what_is_written_is_read(tmp_path: Path, to: str, made: tuple[Annotations, list[str]]) -> None:
    annotations, class_names = made
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    notes = write(annotations, class_names, to, folder)
    data = detkit.data.open(folder, split=[1, 0, 0])
    read = data.annotations("train")
    assert type(data).__name__ == FORMATS[to].name
    in_order = sorted(class_names) if to in ("voc", "csv") else class_names
    assert data.class_names == in_order
    assert any("alphabetical" in note for note in notes) == (in_order != class_names)
    columns = {"coco": ("difficult", "crowd", "area"), "voc": ("difficult",)}.get(to, ())
    truth = objects(class_names, annotations, *columns)
    if to == "voc":
        truth = {file: (*item[:2], round_boxes(item[2]), *item[3:]) for file, item in truth.items()}
    assert_same(truth, objects(data, read, *columns), atol=1e-6 if to == "yolo" else 0)
    if to == "coco":
        assert sorted(read.image_ids.tolist()) == annotations.image_ids.tolist()
        assert data.category_ids == list(range(5, 5 + len(class_names)))
    if to == "yolo":
        assert yaml.safe_load((folder / "data.yaml").read_text("utf-8"))["names"] == class_names
    assert ("difficult" in " ".join(notes)) == (to != "voc" and bool(annotations.difficult.any()))


@given(hnp.arrays(np.float32, 6, elements=st.floats(0, 1e5, width=32)))
@example(np.array([0.1, 1 / 3, 48, 1e-9, 99999.99, 0], np.float32))
def test_shortest_decimals_are_the_same_float32(values: np.ndarray) -> None:
    low, high = np.minimum(values[:3], values[3:]), np.maximum(values[:3], values[3:])
    corner = shortest(low)
    side = shortest(high, corner)
    text = [json.dumps([a, b]) for a, b in zip(corner.tolist(), side.tolist(), strict=True)]
    read = np.array([json.loads(line) for line in text])
    np.testing.assert_array_equal(read[:, 0].astype(np.float32), low)
    np.testing.assert_array_equal(read.sum(1).astype(np.float32), high)


def test_decimals_are_short() -> None:
    boxes = np.array([[0.1, 2.25, 10.3, 5.5]], np.float32)
    corner = shortest(boxes[:, :2])
    assert corner.tolist() == [[0.1, 2.25]] and shortest(boxes[:, 2:], corner).tolist() == [[10.2, 3.25]]
    shares, digits = yolo_shares(np.array([[0, 0, 320, 240]], np.float32), np.array([[640, 480]]))
    assert shares.tolist() == [[0.25, 0.25, 0.5, 0.5]] and digits.tolist() == [6]


@given(
    hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 1, width=32)), st.integers(1, 10_000), st.integers(1, 10_000)
)
def test_yolo_keeps_the_pixels_of_a_large_image(raw: np.ndarray, width: int, height: int) -> None:
    low, high = np.minimum(raw[:, :2], raw[:, 2:]), np.maximum(raw[:, :2], raw[:, 2:])
    boxes = np.hstack([low, high]) * np.array([width, height] * 2, np.float32)
    shares, digits = yolo_shares(boxes, np.full((5, 2), (width, height)))
    text = [[f"{value:.{places}f}" for value in row] for row, places in zip(shares.tolist(), digits, strict=True)]
    x, y, w, h = np.array(text, np.float64).T
    read = np.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], 1)
    np.testing.assert_allclose(read.astype(np.float32), boxes, rtol=0, atol=1e-6)


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 100, width=32)))
def test_rounding_moves_no_side_by_a_pixel_and_keeps_one(raw: np.ndarray) -> None:
    boxes = np.hstack([np.minimum(raw[:, :2], raw[:, 2:]), np.maximum(raw[:, :2], raw[:, 2:])])
    rounded = round_boxes(boxes)
    assert (rounded[:, 2:] - rounded[:, :2] >= 1).all() and (rounded == np.round(rounded)).all()
    assert (np.abs(rounded - boxes) <= 1).all()
    wide = (boxes[:, 2:] - boxes[:, :2] > 1).all(1)
    assert (np.abs(rounded - boxes)[wide] <= 0.5).all()


def made(crowd: bool = False, annotated: bool = True, box: tuple[float, ...] = (1.25, 2, 20, 22)) -> Annotations:
    builder = AnnotationsBuilder("")
    builder.image("a", "a.png", 40, 30)
    builder.image("b", "b.png", 40, 30)
    if annotated:
        builder.box(0, box, 1)
        builder.box(0, (0, 0, 40, 30), 1, crowd=crowd)
    return builder.build(annotated=annotated)


@pytest.mark.parametrize(
    ("to", "note", "boxes"),
    [("coco", None, 2), ("voc", "written as difficult", 2), ("yolo", "left out", 1), ("csv", "left out", 1)],
)
def test_a_crowd_is_told(tmp_path: Path, to: str, note: str | None, boxes: int) -> None:
    notes = [each for each in write(made(crowd=True), ["cat"], to, tmp_path) if "crowd" in each]
    assert notes == [] if note is None else note in notes[0] and notes[0].startswith("train: 1 boxes of crowds")
    read = detkit.data.open(tmp_path, split=[1, 0, 0]).annotations("train")
    assert len(read.boxes) == boxes and len(read) == 2
    assert read.crowd.tolist() == ([False, True] if to == "coco" else [False] * boxes)
    assert read.difficult.tolist() == ([False, True] if to == "voc" else [False] * boxes)


@pytest.mark.parametrize("to", list(FORMATS))
def test_an_image_without_objects_stays(tmp_path: Path, to: str) -> None:
    write(made(), ["cat"], to, tmp_path)
    read = detkit.data.open(tmp_path, split=[1, 0, 0]).annotations("train")
    assert sorted(read.counts.tolist()) == [0, 2] and read.annotated
    if to == "yolo":
        assert (tmp_path / "labels/train/b.txt").read_text() == ""


@pytest.mark.parametrize("to", list(FORMATS))
def test_a_set_that_nobody_annotated(tmp_path: Path, to: str) -> None:
    write(made(), ["cat"], "coco" if to == "coco" else "voc", tmp_path / "other")
    notes = write(made(annotated=False), ["cat"], to, tmp_path / to, "test")
    if to in ("coco", "voc"):
        options = {
            "coco": {"train_annotations": "annotations/instances_test.json", "val_annotations": None},
            "voc": {"train": "test", "val": None, "test": None},
        }[to]
        data = getattr(detkit.data, FORMATS[to].name)(path=tmp_path / to, class_names=["cat"], **options)
        read = data.annotations("train")
        assert not read.annotated and len(read) == 2
    else:
        assert any("nobody has annotated" in note for note in notes)


def test_boxes_that_move_are_counted(tmp_path: Path) -> None:
    notes = write(made(), ["cat"], "voc", tmp_path)
    assert notes == [
        "train: 1 of 2 boxes are rounded to whole pixels, which VOC has; no side moves by more than 0.25 px"
    ]
    thin = write(made(box=(3, 3, 4.4, 20)), ["cat"], "voc", tmp_path / "thin")
    assert "train: 1 boxes are 1 px wide or high" in thin[1]


def test_classes_that_a_format_cannot_hold(tmp_path: Path) -> None:
    notes = write(made(), ["cat", " dog", "ant"], "voc", tmp_path)
    assert "2 without objects in train and val are lost:  dog, ant" in notes[0]
    assert "alphabetical" in notes[1] and "lose the white space at their ends: ' dog'" in notes[2]
    with pytest.raises(DataError, match="XML does not allow; rename"):
        write(made(), ["c\uffffat"], "voc", tmp_path / "other")
