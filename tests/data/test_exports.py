"""What labelling tools and other programs export, built here from their documentation: opened by the folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detkit
from detkit.data import DetectionDataModule

WIDTH, HEIGHT = 64, 48
Boxes = list[tuple[str, tuple[int, int, int, int]]]
#: Image -> class and half-open box of its objects, on the left of the last image none.
TRUTH: dict[str, Boxes] = {
    "a": [("cat", (4, 6, 30, 40)), ("dog", (32, 8, 60, 44))],
    "b": [("dog", (10, 12, 50, 36))],
    "c": [],
}
NAMES = ["cat", "dog"]
Make = Callable[[dict[str, str]], Path]


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Make:
    """`make({"a.png": "", "x/a.txt": text})` -> a folder; images, whose text is empty, are of one size."""

    def make(files: dict[str, str]) -> Path:
        for seed, (name, text) in enumerate(files.items()):
            path = tmp_path / "my data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                write_image(path, WIDTH, HEIGHT, seed=seed)
            else:
                path.write_text(text)
        return tmp_path / "my data"

    return make


def voc_xml(name: str, objects: Boxes) -> str:
    items = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1}.0</xmin><ymin>{y1 + 1}.0</ymin><xmax>{x2}.0</xmax><ymax>{y2}.0</ymax></bndbox>"
        "</object>"
        for label, (x1, y1, x2, y2) in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><folder></folder><filename>{name}.png</filename>{size}{items}</annotation>"


def yolo_txt(objects: Boxes) -> str:
    lines = []
    for label, (x1, y1, x2, y2) in objects:
        shares = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        lines.append(" ".join([str(NAMES.index(label)), *(f"{share:.6f}" for share in shares)]) + "\n")
    return "".join(lines)


def coco(names: str, first_id: int = 1, **image: Any) -> str:
    rows = [(i, item) for i, name in enumerate(names) for item in TRUTH[name]]
    return json.dumps(
        {
            "info": {"contributor": ""},
            "licenses": [{"id": 0, "name": "", "url": ""}],
            "categories": [{"id": first_id + i, "name": name, "supercategory": ""} for i, name in enumerate(NAMES)],
            "images": [
                {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT, "date_captured": 0, **image}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": i,
                    "category_id": first_id + NAMES.index(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [],
                    "iscrowd": 0,
                    "attributes": {"occluded": False, "rotation": 0.0},
                }
                for number, (i, (label, (x1, y1, x2, y2))) in enumerate(rows, 1)
            ],
        }
    )


def table(names: str, columns: str, row: Callable[[str, str, int, int, int, int], str]) -> str:
    return "\n".join([columns, *(row(f"{n}.png", label, *box) for n in names for label, box in TRUTH[n]), ""])


def tf_row(image: str, label: str, *box: int) -> str:
    return ",".join(map(str, (image, WIDTH, HEIGHT, label, *box)))


TF = "filename,width,height,class,xmin,ymin,xmax,ymax"
#: What is in the folder, and the images of each set; None: they are divided.
EXPORTS: dict[str, tuple[dict[str, str], dict[str, str] | None]] = {
    "CVAT, COCO": (
        {"annotations/instances_default.json": coco("abc"), **{f"images/default/{n}.png": "" for n in "abc"}},
        None,
    ),
    "CVAT, COCO with subsets": (
        {
            "annotations/instances_Train.json": coco("ab"),
            "annotations/instances_Validation.json": coco("c"),
            **{"images/Train/a.png": "", "images/Train/b.png": "", "images/Validation/c.png": ""},
        },
        {"train": "ab", "val": "c"},
    ),
    "CVAT, YOLO 1.1": (
        {
            "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": "cat\ndog\n",
            "train.txt": "".join(f"data/obj_train_data/{n}.png\n" for n in "abc"),
            **{f"obj_train_data/{n}.txt": yolo_txt(TRUTH[n]) for n in "abc"},
            **{f"obj_train_data/{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "CVAT, YOLO 1.1 with subsets": (
        {
            "obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
            "obj.names": "cat\ndog\n",
            "train.txt": "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n",
            "valid.txt": "data/obj_valid_data/c.png\n",
            **{f"obj_train_data/{n}.txt": yolo_txt(TRUTH[n]) for n in "ab"},
            **{"obj_train_data/a.png": "", "obj_train_data/b.png": "", "obj_valid_data/c.png": ""},
            "obj_valid_data/c.txt": "",
        },
        {"train": "ab", "val": "c"},
    ),
    "CVAT, Ultralytics YOLO": (
        {
            "data.yaml": "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n",
            "train.txt": "".join(f"data/images/train/{n}.png\n" for n in "abc"),
            **{f"labels/train/{n}.txt": yolo_txt(TRUTH[n]) for n in "abc"},
            **{f"images/train/{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "CVAT, Pascal VOC": (
        {
            "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n",
            "ImageSets/Main/default.txt": "a\nb\nc\n",
            "ImageSets/Main/cat_default.txt": "a 1\nb -1\nc -1\n",
            "ImageSets/Main/dog_default.txt": "a 1\nb 1\nc -1\n",
            **{f"Annotations/{n}.xml": voc_xml(n, TRUTH[n]) for n in "abc"},
            **{f"JPEGImages/{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "CVAT, Pascal VOC in subfolders": (
        {
            "labelmap.txt": "# label:color_rgb:parts:actions\n",
            "ImageSets/Main/Train.txt": "day 1/a\nday 1/b\n",
            "ImageSets/Main/Validation.txt": "day 2/c\n",
            **{f"Annotations/day {d}/{n}.xml": voc_xml(f"day {d}/{n}", TRUTH[n]) for n, d in ("a1", "b1", "c2")},
            **{f"JPEGImages/day {d}/{n}.png": "" for n, d in ("a1", "b1", "c2")},
        },
        {"train": "ab", "val": "c"},
    ),
    "Roboflow, COCO": (
        {
            "README.roboflow.txt": "cats",
            "train/_annotations.coco.json": coco("ab", extra={"name": "a.png"}),
            "valid/_annotations.coco.json": coco("c"),
            **{"train/a.png": "", "train/b.png": "", "valid/c.png": ""},
        },
        {"train": "ab", "val": "c"},
    ),
    "Roboflow, Pascal VOC": (
        {
            "README.dataset.txt": "cats",
            **{f"{s}/{n}.xml": voc_xml(n, TRUTH[n]) for n, s in (("a", "train"), ("b", "train"), ("c", "valid"))},
            **{"train/a.png": "", "train/b.png": "", "valid/c.png": ""},
        },
        {"train": "ab", "val": "c"},
    ),
    "Roboflow, YOLOv8": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
            "names: ['cat', 'dog']\n\nroboflow:\n  workspace: me\n  version: 1\n",
            **{f"train/labels/{n}.txt": yolo_txt(TRUTH[n]) for n in "ab"},
            **{"train/images/a.png": "", "train/images/b.png": "", "valid/images/c.png": "", "valid/labels/c.txt": ""},
        },
        {"train": "ab", "val": "c"},
    ),
    "Roboflow, YOLO Darknet": (
        {
            **{f"{split}/_darknet.labels": "cat\ndog" for split in ("train", "valid")},
            **{f"train/{n}.txt": yolo_txt(TRUTH[n]) for n in "ab"},
            **{"train/a.png": "", "train/b.png": "", "valid/c.png": "", "valid/c.txt": ""},
        },
        {"train": "ab", "val": "c"},
    ),
    "Roboflow, TensorFlow CSV": (
        {
            "train/_annotations.csv": table("a", TF, tf_row),
            "valid/_annotations.csv": table("b", TF, tf_row),
            **{"train/a.png": "", "valid/b.png": ""},
        },
        {"train": "a", "val": "b"},
    ),
    "labelImg, YOLO": (
        {
            "classes.txt": "cat\ndog\n",
            **{f"{n}.txt": yolo_txt(TRUTH[n]) for n in "ab"},
            **{f"{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "labelImg, YOLO, classes beside the labels": (
        {
            "labels/classes.txt": "cat\ndog\n",
            **{f"labels/{n}.txt": yolo_txt(TRUTH[n]) for n in "ab"},
            **{f"photos/{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "Label Studio, YOLO": (
        {
            "classes.txt": "cat\ndog\n",
            "notes.json": json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2026}}),
            **{f"labels/1a2b3c4d-{n}.txt": yolo_txt(TRUTH[n]) for n in "abc"},
            **{f"images/1a2b3c4d-{n}.png": "" for n in "abc"},
        },
        None,
    ),
    "VoTT": (
        {
            "vott-csv-export/cats-export.csv": table(
                "ab",
                '"image","xmin","ymin","xmax","ymax","label"',
                lambda image, label, *box: ",".join([f'"{image}"', *map(str, map(float, box)), f'"{label}"']),
            ),
            **{f"vott-csv-export/{n}.png": "" for n in "ab"},
        },
        None,
    ),
    "TensorFlow": ({"labels.csv": table("ab", TF, tf_row), "images/a.png": "", "images/b.png": ""}, None),
    "Kaggle": (
        {
            "train.csv": table(
                "ab",
                "image_id,width,height,bbox,source,class",
                lambda image, label, x1, y1, x2, y2: (
                    f'{image[0]},{WIDTH},{HEIGHT},"[{x1}.0, {y1}.0, {x2 - x1}.0, {y2 - y1}.0]",usask_1,{label}'
                ),
            ),
            "sample_submission.csv": "image_id,PredictionString\nz,1.0 0 0 50 50\n",
            **{"train/a.png": "", "train/b.png": "", "test/z.png": ""},
        },
        None,
    ),
}


def found_in(data: DetectionDataModule, split: str) -> dict[str, Boxes]:
    """Name of the image -> class and box of its objects."""
    annotations = data.annotations(split)
    assert annotations is not None
    found: dict[str, Boxes] = {}
    for index in range(len(annotations)):
        fields = annotations.fields(index)
        boxes = [tuple(np.round(box, 3).tolist()) for box in fields["boxes"]]
        labels = [data.class_names[label - 1] for label in fields["labels"]]
        found[Path(annotations.path(index)).stem[-1]] = list(zip(labels, boxes, strict=True))
        annotations.image(index)
    return found


@pytest.mark.parametrize("name", EXPORTS)
def test_the_same_images_boxes_and_classes(make: Make, name: str) -> None:
    files, sets = EXPORTS[name]
    data = detkit.data.open(make(files), **({} if sets else {"split": [1, 0, 0]}))
    assert data.class_names == NAMES
    if sets is None:
        listed = "ab" if name in ("VoTT", "TensorFlow", "Kaggle") else "abc"
        assert found_in(data, "train") == {image: TRUTH[image] for image in listed}
        assert data.annotations("val") is None
        return
    for split, images in sets.items():
        assert found_in(data, split) == {image: TRUTH[image] for image in images}
    assert data.test_split == "val"


def test_a_set_that_was_not_exported_is_told_and_not_replaced(make: Make) -> None:
    files, _ = EXPORTS["Roboflow, YOLOv8"]
    folder = make({name: text for name, text in files.items() if not name.startswith("valid")})
    data = detkit.data.open(folder, split=[0.5, 0.5, 0])
    findings = data.read("all").findings
    assert [finding.kind for finding in findings] == ["no_such_set", "no_such_set"]
    assert "'../valid/images' is not there" in findings[0].message
    # The whole folder is not taken for a set whose own folder is missing.
    names = [name for split in ("train", "val") for name in found_in(data, split)]
    assert sorted(names) == ["a", "b"]


def test_images_that_no_row_names_are_told(make: Make) -> None:
    files, _ = EXPORTS["Kaggle"]
    (finding, *_) = [
        each for each in detkit.data.open(make(files)).read("all").findings if each.kind == "not_annotated"
    ]
    assert finding.count == 1 and "test/z.png" in finding.message
