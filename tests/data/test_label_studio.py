"""Label Studio's exports, written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detkit
from detkit.data import LabelStudio
from detkit.errors import DataError

WIDTH, HEIGHT = 40, 30


def region(box: tuple[float, ...], *labels: str, **value: Any) -> dict[str, Any]:
    """A result; the box is x, y, width and height in percent."""
    content = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"rotation": 0} | value
    return {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": content | {"rectanglelabels": list(labels)},
        "id": "x1",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
    }


def task(number: int, image: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": [{"id": 1, "was_cancelled": False, "result": list(results)}],
        "predictions": [],
        "data": {"image": image},
    } | more


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """`make([task, ...], images=["a.png"])` -> a folder."""

    def make(tasks: list[dict[str, Any]], images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
        for seed, name in enumerate(images):
            write_image(tmp_path / name, WIDTH, HEIGHT, seed=seed)
        (tmp_path / "project-1-at-2026-11-28.json").write_text(json.dumps(tasks))
        return tmp_path

    return make


CAT, DOG = region((10, 20, 50, 40), "cat"), region((25, 50, 75, 50), "dog")
BOXES = [[4, 6, 24, 18], [10, 15, 40, 30]]


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (("/data/upload/1/3f2a1b9c-a.png", "/data/upload/1/0011ffee-b.png"), ("a.png", "b.png")),
        (("/data/upload/1/3f2a1b9c-a.png", "b.png"), ("images/3f2a1b9c-a.png", "images/b.png")),
        (("/data/local-files/?d=photos/my%20a.png", "/data/local-files/?d=photos/b.png"), ("my a.png", "b.png")),
        (("https://host.org/x/my%20a.png?token=1", "s3://bucket/photos/b.png"), ("my a.png", "b.png")),
        (("C:\\photos\\a.png", "photos\\b.png"), ("photos/a.png", "photos/b.png")),
    ],
)
def test_images_are_found_by_their_names(
    make: Callable[..., Path], given: tuple[str, str], files: tuple[str, ...]
) -> None:
    folder = make([task(7, given[0], CAT, DOG), task(8, given[1], DOG)], files)
    data = detkit.data.open(folder, split=[1, 0, 0])
    train = data.annotations("train")
    assert isinstance(data, LabelStudio) and data.class_names == ["cat", "dog"]
    assert train.files.tolist() == list(files) and train.counts.tolist() == [2, 1]
    assert train.boxes.round(3).tolist() == [*BOXES, BOXES[1]]
    assert train.labels.tolist() == [1, 2, 2]


def test_the_short_form(make: Callable[..., Path]) -> None:
    short = [result["value"] | {"original_width": WIDTH, "original_height": HEIGHT} for result in (CAT, DOG)]
    folder = make([{"image": "/data/upload/1/3f2a1b9c-a.png", "id": 1, "label": short, "annotator": 1}])
    train = detkit.data.open(folder, split=[1, 0, 0]).annotations("train")
    assert train.boxes.round(3).tolist() == BOXES


def kinds(folder: Path, **options: Any) -> dict[str, int]:
    findings = LabelStudio(str(folder), split=[1, 0, 0], **options).read("all").findings
    return {finding.kind: finding.count for finding in findings}


def test_the_last_annotation_that_is_submitted_counts(make: Callable[..., Path]) -> None:
    several = [
        {"result": [CAT]},
        {"result": [DOG], "was_cancelled": False},
        {"result": [CAT, CAT], "was_cancelled": True},
    ]
    tasks = [task(1, "a.png", annotations=several), task(2, "b.png", annotations=[], predictions=[{"result": [CAT]}])]
    tasks += [task(3, "c.png")]
    folder = make(tasks, ("a.png", "b.png", "c.png"))
    train = LabelStudio(str(folder), split=[1, 0, 0]).annotations("train")
    assert train.files.tolist() == ["a.png", "c.png"] and train.counts.tolist() == [1, 0]
    assert train.boxes.round(3).tolist() == [BOXES[1]]
    assert kinds(folder) == {"several_annotations": 1, "not_annotated": 1}


@pytest.mark.parametrize("angle", [0, 30, 90, -45, 180])
def test_the_box_around_a_turned_rectangle(make: Callable[..., Path], angle: float) -> None:
    folder = make([task(1, "a.png", region((50, 50, 20, 10), "cat", rotation=angle))])
    box = LabelStudio(str(folder), split=[1, 0, 0], class_names=["cat"]).annotations("train").boxes[0]
    # The rectangle of 8 x 3 pixels turns clockwise about its first corner, (20, 15).
    turn = math.radians(angle)
    corners = [
        (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))
        for x, y in ((0, 0), (8, 0), (8, 3), (0, 3))
    ]
    xs, ys = zip(*corners, strict=True)
    assert box.tolist() == pytest.approx([20 + min(xs), 15 + min(ys), 20 + max(xs), 15 + max(ys)], abs=1e-4)
    assert kinds(folder) == ({"rotated": 1} if angle else {})


@pytest.mark.parametrize("angle", [0, 30, 90, -45])
def test_the_box_around_a_turned_ellipse(make: Callable[..., Path], angle: float) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": angle, "ellipselabels": ["cat"]}
    folder = make([task(1, "a.png", CAT | {"value": value})])
    box = LabelStudio(str(folder), split=[1, 0, 0]).annotations("train").boxes[0]
    # Points on the ellipse with the half axes of 8 and 3 pixels about (20, 15).
    turn = math.radians(angle)
    points = [(8 * math.cos(step / 500), 3 * math.sin(step / 500)) for step in range(3142)]
    xs = [20 + x * math.cos(turn) - y * math.sin(turn) for x, y in points]
    ys = [15 + x * math.sin(turn) + y * math.cos(turn) for x, y in points]
    assert box.tolist() == pytest.approx([min(xs), min(ys), max(xs), max(ys)], abs=1e-3)
    assert kinds(folder) == {"from_outline": 1} | ({"rotated": 1} if angle else {})


def test_what_is_no_rectangle_is_counted(make: Callable[..., Path]) -> None:
    polygon = CAT | {
        "type": "polygonlabels",
        "value": {"points": [[10, 20], [60, 20], [30, 60]], "polygonlabels": ["cat"]},
    }
    ellipse = CAT | {"value": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}}
    choice = {"type": "choices", "value": {"choices": ["sunny"]}}
    several = region((10, 20, 50, 40), "cat", "dog")
    folder = make([task(1, "a.png", polygon, ellipse, choice, several, region((1, 1, 50, 50)))])
    train = LabelStudio(str(folder), split=[1, 0, 0]).annotations("train")
    assert train.boxes.round(3).tolist() == [BOXES[0], [16, 9, 24, 21], BOXES[0], BOXES[0]]
    assert kinds(folder) == {"from_outline": 2, "no_label": 1, "several_classes": 1, "no_box": 1}


def test_exports_called_as_splits_are(make: Callable[..., Path]) -> None:
    folder = make([])
    (folder / "project-1-at-2026-11-28.json").unlink()
    for split, image in (("train", "a.png"), ("val", "b.png")):
        (folder / f"{split}.json").write_text(json.dumps([task(1, image, CAT)]))
    data = detkit.data.open(folder)
    assert [data.annotations(split).files.tolist() for split in ("train", "val")] == [["a.png"], ["b.png"]]
    (folder / "more.json").write_text(json.dumps([task(1, "b.png", CAT)]))
    with pytest.raises(DataError, match="are exports of Label Studio; name one of them as path"):
        detkit.data.open(folder)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task(5, "z.png", CAT)], r"task 5: the image 'z\.png' is not below"),
        (
            [task(5, "../../etc/z.png", CAT)],
            "task 5: file name .* leaves the image folder; refused",
        ),
        ([task(5, "a.png", region(("x", 1, 2, 3), "cat"))], "task 5: result 1: .* is no region in percent"),
        ([task(5, "a.png") | {"data": {"text": "hello"}}], "task 5: its data names no image: {'text': 'hello'}"),
        ([task(5, "a.png")], "no object, so no class to learn"),
    ],
)
def test_bad_tasks_are_named(make: Callable[..., Path], tasks: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelStudio(str(make(tasks)))
