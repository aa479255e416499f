"""Roboflow's supervision: it reads what `detkit convert` writes, detkit what it writes, and it takes our detections.

Skipped where supervision is not installed; it is no part of the development environment. Run with -s, it prints the
largest differences.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import detkit
from detkit.data import DetectionDataModule
from detkit.features.backbones import MapSettings
from detkit.heads.detection import DetectionSettings

supervision = pytest.importorskip("supervision")

Objects = dict[str, list[tuple[str, tuple[float, ...]]]]
#: supervision writes shares with 5 decimals, and VOC in whole pixels; detkit's YOLO is exact.
PIXEL = {"coco": 1e-4, "yolo": 0.01, "voc": 0.5}


def ours(data: DetectionDataModule, crowds: bool = False) -> Objects:
    """File name -> class and box of the objects of the training set, sorted, with or without boxes of crowds."""
    found: Objects = {}
    annotations = data.annotations("train")
    for index, file in enumerate(annotations.files.tolist()):
        fields = annotations.fields(index)
        rows = zip(fields["labels"], fields["boxes"].tolist(), fields["crowd"], strict=True)
        objects = [(data.class_names[label - 1], tuple(box)) for label, box, crowd in rows if crowds or not crowd]
        found[Path(file).name] = sorted(objects)
    return found


def theirs(dataset: Any) -> Objects:
    found: Objects = {}
    for path in dataset.image_paths:
        detections = dataset.annotations[path]
        crowd = detections.data.get("iscrowd", np.zeros(len(detections)))
        rows = zip(detections.class_id, detections.xyxy.tolist(), crowd, strict=True)
        found[Path(path).name] = sorted((dataset.classes[number], tuple(box)) for number, box, flag in rows if not flag)
    return found


def difference(one: Objects, other: Objects) -> float:
    """The largest difference of a coordinate; images, classes and numbers of boxes are the same."""
    assert one.keys() == other.keys() and sum(map(len, one.values())) > 900
    largest = 0.0
    for file, objects in one.items():
        assert sorted(name for name, _ in objects) == sorted(name for name, _ in other[file])
        for name in {name for name, _ in objects}:  # boxes may change their order where they are rounded
            a = np.array([box for each, box in objects if each == name])
            b = np.array([box for each, box in other[file] if each == name])
            apart = np.abs(a[:, None] - b[None]).max(2)
            assert sorted(apart.argmin(1)) == list(range(len(a))) or (apart.min(1) < 1e-9).all()
            largest = max(largest, apart.min(1).max(), apart.min(0).max())
    return float(largest)


def read(form: str, root: Path) -> Any:
    dataset = supervision.DetectionDataset
    if form == "coco":
        return dataset.from_coco(str(root / "images/train"), str(root / "annotations/instances_train.json"))
    if form == "voc":
        return dataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    return dataset.from_yolo(*(str(root / name) for name in ("images/train", "labels/train", "data.yaml")))


def write(form: str, dataset: Any, root: Path) -> None:
    if form == "coco":
        (root / "train").mkdir(parents=True)
        dataset.as_coco(str(root / "train"), str(root / "train/_annotations.coco.json"))
    elif form == "voc":
        dataset.as_pascal_voc(str(root / "train"), str(root / "train"))
    else:
        dataset.as_yolo(*(str(root / name) for name in ("train/images", "train/labels", "data.yaml")))


@pytest.mark.parametrize("form", list(PIXEL))
@pytest.mark.parametrize("name", ["bccd", "coco128"])
def test_equal_boxes(shared: Callable[[str], Path], tmp_path: Path, name: str, form: str) -> None:
    options = {"split": [1, 0, 0]} if name == "coco128" else {"val": None, "test": None}
    data = detkit.data.open(shared(f"data/{name}"), **options)
    truth = ours(data, crowds=form == "voc")  # there they are difficult objects
    # supervision refuses COCO's images where they are links that lead out of their folder.
    detkit.convert(data, form, tmp_path / "ours", images="copy" if form == "coco" else "link")
    dataset = read(form, tmp_path / "ours")
    reading = difference(truth, theirs(dataset))
    write(form, dataset, tmp_path / "theirs")
    again = detkit.data.open(tmp_path / "theirs", split=[1, 0, 0])
    wide = {file: [item for item in objects if side(item) > 1] for file, objects in theirs(dataset).items()}
    writing = difference(wide, ours(again))
    print(f"\n{name} as {form}: supervision reads ours {reading:.2g} px apart, detkit reads theirs {writing:.2g} px")
    assert reading <= (PIXEL[form] if form == "voc" else 1e-4) and writing <= PIXEL[form]


def test_detections_are_equal_in_supervision(shared: Callable[[str], Path]) -> None:
    image = next(iter(sorted(shared("data/coco128").rglob("*.jpg"))))
    settings = {"features": MapSettings(fpn=False), "detection": DetectionSettings(score_threshold=0.0)}
    model = detkit.FasterRCNN(["cat", "dog"], backbone="tiny", **settings)
    found = model.predict(image)
    theirs = found.to_supervision()
    assert len(theirs) == len(found["scores"]) > 5 and theirs.class_id.dtype.kind == "i"
    assert np.array_equal(theirs.xyxy, found["boxes"].numpy())
    assert np.array_equal(theirs.confidence, found["scores"].numpy())
    names = [model.class_names[number] for number in theirs.class_id]
    assert names == theirs["class_name"].tolist() == [found.name(label) for label in found["labels"].tolist()]
    dogs = theirs[(theirs.class_id == 1) & (theirs.confidence > 0.3)]  # their way of filtering
    assert np.array_equal(dogs.xyxy, found.filter(score=0.3, classes=["dog"])["boxes"].numpy())
    assert len(supervision.BoxAnnotator().annotate(np.zeros((480, 640, 3), np.uint8), theirs).nonzero()[0])
    assert len(found.filter(score=1.0).to_supervision()) == 0


def side(item: tuple[str, tuple[float, ...]]) -> float:
    """The shorter side; detkit leaves out boxes of a pixel."""
    x1, y1, x2, y2 = item[1]
    return min(x2 - x1, y2 - y1)
