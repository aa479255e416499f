"""YOLO's layouts in their dialects, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import detkit
from detkit.data import YOLO
from detkit.errors import DataError

#: Of images of 40 x 30: the box (10, 6, 30, 24) and an outline with the box (4, 3, 20, 15).
BOX, OUTLINE = "0 0.5 0.5 0.5 0.6", "1 0.1 0.1 0.5 0.2 0.3 0.5"


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """`make({image: its label file}, {file: text})` -> a folder; each label file holds both objects."""

    def make(images: dict[str, str | None], files: dict[str, str]) -> Path:
        for seed, (image, label) in enumerate(images.items()):
            write_image(tmp_path / image, seed=seed)
            files |= {label: f"{BOX}\n{OUTLINE}\n"} if label is not None else {}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


ROBOFLOW = {"train/images/a.png": "train/labels/a.txt", "valid/images/b.png": "valid/labels/b.txt"}
ULTRALYTICS = {"images/train/a.png": "labels/train/a.txt", "images/val/b.png": "labels/val/b.txt"}
DARKNET = {"obj_train_data/a.png": "obj_train_data/a.txt", "obj_train_data/b.png": "obj_train_data/b.txt"}
NAMES = "names: [cat, dog]\n"


@pytest.mark.parametrize(
    ("images", "files"),
    [
        (ROBOFLOW, {"data.yaml": f"train: ../train/images\nval: ../valid/images\nnc: 2\n{NAMES}"}),
        (ROBOFLOW, {"data.yaml": NAMES}),
        (ROBOFLOW, {"classes.txt": "cat\ndog\n"}),
        (
            ULTRALYTICS,
            {"coco.yaml": "path: /elsewhere/data\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"},
        ),
        (
            ULTRALYTICS,
            {
                "data.yaml": f"train: train.txt\nval: val.txt\n{NAMES}",
                "train.txt": "./images/train/a.png\n",
                "val.txt": "images/val/b.png\n",
            },
        ),
        (ULTRALYTICS, {"data.yaml": f"train: [images/train]\nval: [images/val]\n{NAMES}"}),
        (
            DARKNET,
            {
                "obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
                "obj.names": "cat\ndog\n",
                "train.txt": "data/obj_train_data/a.png\n",
                "valid.txt": "data/obj_train_data/b.png\n",
            },
        ),
    ],
)
def test_dialects(make: Callable[..., Path], images: dict[str, str], files: dict[str, str]) -> None:
    data = detkit.data.open(make(images, dict(files)))
    assert data.class_names == ["cat", "dog"]
    for split, name in (("train", "a"), ("val", "b")):
        annotations = data.annotations(split)
        assert [Path(file).stem for file in annotations.files] == [name]
        assert annotations.boxes.round(4).tolist() == [[10, 6, 30, 24], [4, 3, 20, 15]]
        assert annotations.labels.tolist() == [1, 2]


def sets_of(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The names of the images to train on and to validate on, and the findings but for outlines."""
    data = YOLO(str(folder))
    parts = [data.annotations(split) for split in ("train", "val")]
    told = [f"{each.kind} {each.count}" for part in parts for each in part.findings if each.kind != "from_outline"]
    return [[Path(file).name for file in part.files] for part in parts], told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: ../other/images\nval: images\n", []),
        ("train: {top}/other/images\nval: {top}/p/images\n", []),
        ("path: ..\ntrain: other/images\nval: p/images\n", []),
        ("path: /elsewhere\ntrain: ../other/images\nval: /home/me/images\n", ["other_name 2"]),
    ],
)
def test_entries_are_what_they_say(make: Callable[..., Path], text: str, told: list[str]) -> None:
    images = {"other/images/a.png": "other/labels/a.txt", "p/images/b.png": "p/labels/b.txt"}
    folder = make(images, {})
    (folder / "p/data.yaml").write_text(text.format(top=folder) + NAMES)
    assert sets_of(folder / "p") == ([["a.png"], ["b.png"]], told)


def test_the_folder_beside_a_description_is_taken_for_one_above_it(make: Callable[..., Path]) -> None:
    text = f"train: ../train/images\nval: ../valid/images\n{NAMES}"
    assert sets_of(make(ROBOFLOW, {"data.yaml": text})) == ([["a.png"], ["b.png"]], [])


def test_without_a_split_it_is_divided(make: Callable[..., Path]) -> None:
    images = {f"images/{number}.png": f"labels/{number}.txt" for number in range(10)}
    data = detkit.data.open(make(images, {"classes.txt": "cat\ndog\n"}))
    sizes = {split: len(data.annotations(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 8, "val": 1, "test": 1}


def test_images_without_label_file_have_no_objects_and_are_told(make: Callable[..., Path]) -> None:
    folder = make(ROBOFLOW | {"train/images/c.png": None}, {"data.yaml": NAMES, "train/labels/c2.txt": ""})
    train = YOLO(str(folder)).annotations("train")
    assert train.counts.tolist() == [2, 0]
    missing, outlines = train.findings
    assert (missing.kind, missing.count) == ("no_label_file", 1) and "c.png" in missing.message
    assert (outlines.kind, outlines.count) == ("from_outline", 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", r"a\.txt: line 3: class 2, but there are the classes 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"line 3: class 0\.5, but"),
        ("0 0.5 0.5 0.1", r"line 3: has 4 numbers; a box has 5, an outline 7, 9, 11"),
        ("0 100 50 20 10", r"line 3: 100 is no share of a side, 0 to 1; boxes in pixels are not YOLO's"),
        ("fox 0.5 0.5 0.1 0.1", r"line 3: 'fox 0\.5 0\.5 0\.1 0\.1' is not a class number and shares"),
        ("0 nan 0.5 0.1 0.1", r"line 3: nan is no share"),
        ("0 1e999 0.5 0.1 0.1", r"line 3: inf is no share"),
    ],
)
def test_bad_lines_are_named(make: Callable[..., Path], line: str, message: str) -> None:
    folder = make(ROBOFLOW, {"data.yaml": NAMES})
    with (folder / "train/labels/a.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        YOLO(str(folder)).annotations("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [", "not YAML"),
        ("names: {1: cat, 2: dog}", r"the numbers of `names` are to be 0, 1, \.\.\., 1, not \['1', '2'\]"),
        ("names: 3", "`names` is to be a list"),
        ("train: nowhere\nnames: [cat, dog]", "'nowhere' is not there"),
        ("train: ../../../../etc\nnames: [cat, dog]", "is not there"),
    ],
)
def test_bad_descriptions_are_named(make: Callable[..., Path], text: str, message: str) -> None:
    folder = make(ROBOFLOW, {"data.yaml": text})
    with pytest.raises(DataError, match=message):
        YOLO(str(folder / "data.yaml")).annotations("train")


def test_a_confidence_is_told(make: Callable[..., Path]) -> None:
    folder = make(ROBOFLOW, {"data.yaml": NAMES})
    (folder / "train/labels/a.txt").write_text(f"{BOX} 0.9\n")
    train = YOLO(str(folder)).annotations("train")
    assert train.boxes.round(4).tolist() == [[10, 6, 30, 24]]
    assert [finding.kind for finding in train.findings] == ["confidence"]
