"""BCCD and COCO128 written in other layouts, by code that is not detkit's, and opened by their folder alone."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import detkit


class Truth(NamedTuple):
    """An image and its objects: class and half-open box."""

    path: Path
    size: tuple[int, int]
    objects: list[tuple[str, list[float]]]


def read_bccd(folder: Path) -> list[Truth]:
    images = []
    for path in sorted(folder.glob("**/Annotations/*.xml")):
        root = ElementTree.parse(path).getroot()
        image = path.parents[1] / "JPEGImages" / f"{path.stem}.jpg"
        items = list(root.iter("object"))
        corners = [[int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")] for item in items]
        names = [item.findtext("name") for item in items]
        boxes = [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in corners]
        with Image.open(image) as opened:
            images.append(Truth(image, opened.size, list(zip(names, boxes, strict=True))))
    return images


def read_coco128(folder: Path) -> list[Truth]:
    content = json.loads((folder / "annotations/instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects: dict[int, list[tuple[str, list[float]]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        if not row["iscrowd"]:  # only COCO's JSON has it
            objects[row["image_id"]].append((names[row["category_id"]], [x, y, x + w, y + h]))
    return [
        Truth(folder / "train2017" / image["file_name"], (image["width"], image["height"]), objects[image["id"]])
        for image in content["images"]
    ]


def link(images: list[Truth], folder: Path) -> None:
    folder.mkdir(parents=True)
    for image in images:
        (folder / image.path.name).symlink_to(image.path.absolute())


def write_yolo(images: list[Truth], folder: Path) -> None:
    names = sorted({name for image in images for name, _ in image.objects})
    link(images, folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text(json.dumps({"train": "images/train", "names": names}))
    for image in images:
        lines = []
        for name, (x1, y1, x2, y2) in image.objects:
            w, h = image.size
            numbers = ((x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h)
            lines.append(" ".join([str(names.index(name)), *(f"{number:.6f}" for number in numbers)]))
        (folder / "labels" / "train" / f"{image.path.stem}.txt").write_text("\n".join(lines))


def write_roboflow(images: list[Truth], folder: Path) -> None:
    names = sorted({name for image in images for name, _ in image.objects})
    link(images, folder / "train")
    rows = [
        {"image_id": i, "category_id": names.index(name), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, image in enumerate(images)
        for name, (x1, y1, x2, y2) in image.objects
    ]
    content = {
        "images": [
            {"id": i, "file_name": image.path.name, "width": image.size[0], "height": image.size[1]}
            for i, image in enumerate(images)
        ],
        "annotations": [{"id": i, "iscrowd": 0, **row} for i, row in enumerate(rows)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))


def write_xml(images: list[Truth], folder: Path) -> None:
    link(images, folder)
    for image in images:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image.path.name
        for name, (x1, y1, x2, y2) in image.objects:
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = name
            bounds = ElementTree.SubElement(item, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
                ElementTree.SubElement(bounds, key).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"{image.path.stem}.xml")


def write_csv(images: list[Truth], folder: Path) -> None:
    link(images, folder / "images")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "class", "xmin", "ymin", "xmax", "ymax"])
        for image in images:
            for name, box in image.objects:
                writer.writerow([image.path.name, name, *box])
            if not image.objects:
                writer.writerow([image.path.name, "", "", "", "", ""])


@pytest.mark.parametrize("write", [write_yolo, write_roboflow, write_xml, write_csv])
@pytest.mark.parametrize(("name", "read"), [("bccd", read_bccd), ("coco128", read_coco128)])
def test_the_same_images_boxes_and_classes(
    shared: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    read: Callable[[Path], list[Truth]],
    write: Callable[[list[Truth], Path], None],
) -> None:
    images = read(shared(f"data/{name}"))
    write(images, tmp_path / "data")
    data = detkit.data.open(tmp_path / "data", split=[1, 0, 0])
    train = data.annotations("train")
    assert data.class_names == sorted({name for image in images for name, _ in image.objects})
    assert sorted(Path(file).name for file in train.files) == sorted(image.path.name for image in images)
    truth = {image.path.name: image for image in images}
    for index, file in enumerate(train.files):
        image, fields = truth[Path(file).name], train.fields(index)
        assert (train.widths[index], train.heights[index]) == image.size
        width, height = image.size
        expected = [(name, np.clip(box, 0, [width, height] * 2)) for name, box in image.objects]
        expected = [(name, box) for name, box in expected if min(box[2] - box[0], box[3] - box[1]) > 1.001]
        found = zip([data.class_names[label - 1] for label in fields["labels"]], fields["boxes"], strict=True)
        found = [(name, box) for name, box in found if min(box[2] - box[0], box[3] - box[1]) > 1.001]
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (_, one), (_, other) in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=0.01)
