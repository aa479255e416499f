"""LabelMe's files, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import detkit
from detkit.data import LabelMe
from detkit.errors import DataError


def shape(label: Any, points: Any, kind: str = "rectangle", group: int | None = None) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}


def content(image: str | None, *shapes: dict[str, Any], **more: Any) -> str:
    size = {"imageHeight": 30, "imageWidth": 40}
    return json.dumps(
        {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None} | size | more
    )


CAT, DOG = shape("cat", [[4, 6], [24.5, 18]]), shape("dog", [[40, 30], [10, 15]])
BOXES = [[4, 6, 24.5, 18], [10, 15, 40, 30]]


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """`make({"a.json": text}, images=["a.png"])` -> a folder."""

    def make(files: dict[str, str], images: tuple[str, ...] = ("a.png",)) -> Path:
        for seed, name in enumerate(images):
            write_image(tmp_path / name, seed=seed)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("file", "image_path", "image"),
    [
        ("a.json", "a.png", "a.png"),
        ("labels/a.json", "..\\photos\\a.png", "photos/a.png"),
        ("labels/a.json", "../photos/a.png", "photos/a.png"),
        ("a.json", "C:\\Users\\me\\a.png", "a.png"),
        ("a.json", "old name.png", "a.png"),
        ("a.json", None, "a.png"),
    ],
)
def test_rectangles(make: Callable[..., Path], file: str, image_path: str, image: str) -> None:
    folder = make({file: content(image_path, CAT, DOG)}, (image,))
    data = detkit.data.open(folder, split=[1, 0, 0])
    train = data.annotations("train")
    assert isinstance(data, LabelMe) and data.class_names == ["cat", "dog"]
    assert train.files.tolist() == [image]
    assert train.boxes.tolist() == BOXES and train.labels.tolist() == [1, 2]


def test_other_shapes_and_groups_are_counted(make: Callable[..., Path]) -> None:
    shapes = [
        shape("cat", [[4, 6], [24, 6], [10, 18]], "polygon"),
        shape("dog", [[20, 15], [23, 19]], "circle"),
        shape("tail", [[1, 1], [5, 5]], "line"),
        shape("cat", [[1, 2], [5, 6]], group=1),
        shape("cat", [[10, 2], [20, 9]], group=1),
        shape("dog", [[10, 2], [20, 9]], group=1),
    ]
    data = LabelMe(str(make({"a.json": content("a.png", *shapes)}, ("a.png", "b.png"))), split=[1, 0, 0])
    train = data.read("all")
    assert data.class_names == ["cat", "dog"]
    assert train.boxes.tolist() == [[4, 6, 24, 18], [15, 10, 25, 20], [1, 2, 20, 9], [10, 2, 20, 9]]
    counts = {finding.kind: finding.count for finding in train.findings}
    assert counts == {"from_outline": 2, "no_box": 1, "grouped": 1, "not_annotated": 1}


def test_folders_of_splits_and_a_size_that_is_wrong(make: Callable[..., Path]) -> None:
    files = {f"{split}/{name}.json": content(f"{name}.png", CAT) for split, name in (("train", "a"), ("valid", "b"))}
    files["train/a.json"] = content("a.png", CAT, DOG, imageWidth=20)
    data = detkit.data.open(make(files, ("train/a.png", "valid/b.png")))
    assert [data.annotations(split).files.tolist() for split in ("train", "val")] == [["train/a.png"], ["valid/b.png"]]
    train = data.annotations("train")
    assert [finding.kind for finding in train.findings] == ["other_size"] and train.boxes.tolist() == BOXES


@pytest.mark.parametrize("place", ["", "extra/"])
def test_files_beside_the_folders_of_splits_are_told(make: Callable[..., Path], place: str) -> None:
    names = ("train/a", "valid/b", f"{place}c")
    folder = make({f"{name}.json": content(f"{name[-1]}.png", CAT) for name in names}, tuple(f"{n}.png" for n in names))
    data = LabelMe(str(folder))
    assert [data.annotations(split).files.tolist() for split in ("train", "val")] == [["train/a.png"], ["valid/b.png"]]
    told = [(each.kind, each.count) for split in ("train", "val") for each in data.annotations(split).findings]
    assert told == [("in_no_set", 1)]
    assert f"such as {place}c.json" in data.annotations("train").findings[0].message


def test_a_folder_of_tests_is_not_learnt_from(make: Callable[..., Path]) -> None:
    folder = make({f"{name}.json": content("a.png", CAT) for name in ("test/a", "b/a")}, ("test/a.png", "b/a.png"))
    assert LabelMe(str(folder), class_names=["cat"]).annotations("train") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (content("z.png", CAT), r"b\.json: the image 'z\.png' is not below"),
        (content("a.png", shape("cat", [[1, 2]], "circle")), "shape 1: .* are not the points of a circle"),
        (content("a.png", shape("cat", [])), r"shape 1: \[\] are not the points of a rectangle"),
        (content("a.png", shape(" ", [[1, 2], [3, 4]])), "shape 1: has no label"),
        (content("a.png"), "no object, so no class to learn"),
    ],
)
def test_bad_files_are_named(make: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelMe(str(make({"b.json": text})))
