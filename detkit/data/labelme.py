"""Data sets of LabelMe: a JSON file an image, with its shapes."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from detkit.data.coco_files import decode
from detkit.data.collecting import one_item
from detkit.data.image_finder import ImageFinder
from detkit.data.input_files import LARGEST, short_repr, walk
from detkit.data.layouts import json_kind
from detkit.data.records import Box, ImageRecord, ObjectRecord, Records, counted
from detkit.data.records_module import RecordsDataModule
from detkit.data.voc_files import ALL, in_no_set, split_of_path
from detkit.errors import DataError

#: What is counted -> the kind of its finding, and what is done.
COUNTED = {
    "from_outline": "shapes are no rectangles: their boxes are taken",
    "no_box": "shapes are points or lines: left out",
    "grouped": "shapes have the group and label of another one: they are one object",
}


class LabelMe(RecordsDataModule):
    """A data set of LabelMe: a JSON file an image. Rectangles are read, and the boxes of polygons, circles and masks.

    Shapes of the same label and `group_id` are one object. An image is found by `imagePath`, else by the name of its
    JSON file; what `imageData` holds is not used.

    Args:
        path: the folder; files in folders that are called train, val (or valid) and test are these sets,
            and what is beside them is left out.
        shared: see RecordsDataModule.
    """

    def __init__(self, path: str = "data/labelme", **shared: Any) -> None:
        super().__init__(path, **shared)
        self.use_records(read_labelme(self.path))


def read_labelme(path: str) -> dict[str, Records]:
    """Split -> its images and their objects; "all" where no folders are called as splits are.

    Raises:
        DataError: no file of LabelMe, a shape without points, or an image that is not there.
    """
    names = [path] if os.path.isfile(path) else sorted(walk(path, hidden=False))
    files = [file for file in names if file.lower().endswith(".json") and json_kind(file) == "LabelMe"]
    if not files:
        raise DataError(f"{path}: no file of LabelMe (*.json) there")
    root = os.path.dirname(path) or "." if os.path.isfile(path) else path
    splits = {file: split_of_path(root, file) for file in files}
    named = set(splits.values()) - {ALL}
    divided = len(set(splits.values())) > 1 and named != {"train"}
    others = [file for file, split in splits.items() if split == ALL] if divided else []
    finder = ImageFinder(root)
    counts: dict[str, Counter[str]] = {}
    images: dict[str, list[ImageRecord]] = {}
    for file in sorted(set(files) - set(others)):
        split = splits[file] if divided else ALL
        with one_item():
            image = _read_file(file, root, finder, counts.setdefault(split, Counter()))
            images.setdefault(split, []).append(image)
    records = {split: Records(root, listed, counted(counts[split], COUNTED, root)) for split, listed in images.items()}
    first = records.get("train") or next(iter(records.values()), None)
    if first is not None:
        first.findings.extend([*finder.findings(root), *finder.unnamed(root, {_stem(file, root) for file in others})])
        first.findings.extend([in_no_set(root, others, "files of LabelMe")] if others else [])
    return records


def _read_file(file: str, root: str, finder: ImageFinder, counts: Counter[str]) -> ImageRecord:
    content = decode(file, dict[str, Any], "what LabelMe writes: an object with shapes and imagePath")
    stem = _stem(file, root)
    folder = os.path.dirname(stem)
    given = content.get("imagePath")
    names = [os.path.normpath(os.path.join(folder, given.replace("\\", "/"))), given] if isinstance(given, str) else []
    image = finder.find_any([*filter(None, names), stem], file)
    shapes = content.get("shapes")
    groups: dict[Any, ObjectRecord] = {}
    for number, shape in enumerate(shapes if isinstance(shapes, list) else [], 1):
        where = f"{file}: shape {number}"
        label = shape.get("label") if isinstance(shape, dict) else None
        if label is None or not str(label).strip():
            raise DataError(f"{where}: has no label")
        box = _box(shape, where, counts)
        if box is None:
            counts["no_box"] += 1
            continue
        item = ObjectRecord(str(label).strip(), box, number)
        group = shape.get("group_id")
        key = number if group is None else (str(group), item.class_name)
        if key in groups:
            counts["grouped"] += 1
            first = groups[key].box
            box = (min(first[0], box[0]), min(first[1], box[1]), max(first[2], box[2]), max(first[3], box[3]))
            item = groups[key]._replace(box=box)
        groups[key] = item
    size = [content.get(key) for key in ("imageWidth", "imageHeight")]
    width, height = (int(side) if isinstance(side, int | float) and 0 < side < LARGEST else 0 for side in size)
    return ImageRecord(stem.replace(os.sep, "/"), image, file, list(groups.values()), width, height)


def _stem(file: str, root: str) -> str:
    """The path of a file from the root, without its suffix."""
    return os.path.splitext(os.path.relpath(file, root))[0]


def _box(shape: Mapping[str, Any], where: str, counts: Counter[str]) -> Box | None:
    """The box of a shape; None of one without area."""
    kind = shape.get("shape_type", "polygon")
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        xs, ys = zip(*points, strict=True)
        if kind == "circle":  # its centre, and a point on it
            radius = math.dist(*points)
            xs, ys = (xs[0] - radius, xs[0] + radius), (ys[0] - radius, ys[0] + radius)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: {short_repr(shape.get('points'))} are not the points of a {kind}") from None
    if kind in ("point", "points", "line", "linestrip"):
        return None
    counts["from_outline"] += kind != "rectangle"
    return min(xs), min(ys), max(xs), max(ys)
