"""Data sets that Label Studio exported as JSON: a list of tasks, with the regions of each image."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from detkit.data.coco_files import decode
from detkit.data.collecting import one_item
from detkit.data.image_finder import ImageFinder
from detkit.data.image_io import image_size
from detkit.data.input_files import LARGEST, short_repr
from detkit.data.layouts import json_kind
from detkit.data.records import Box, ImageRecord, ObjectRecord, Records, counted, find_split_files
from detkit.data.records_module import RecordsDataModule
from detkit.data.voc_files import is_image_name
from detkit.errors import DataError

TASKS = "the list of tasks that Label Studio exports as JSON or JSON-MIN"
#: What is counted -> the kind of its finding, and what is done.
COUNTED = {
    "not_annotated": "tasks have no annotation that is submitted: left out",
    "several_annotations": "tasks have several annotations: the last one that is submitted is taken",
    "rotated": "boxes and ellipses are rotated: the boxes around them are taken",
    "from_outline": "regions are outlines: their boxes are taken",
    "no_label": "regions have no label: left out",
    "several_classes": "regions have several labels: each is taken as an object",
    "no_box": "results are no boxes (choices, brushes, ...): left out",
    "image_rotation": "regions were drawn while the image was turned: taken as drawn on the image as it is stored",
    "duplicate": "tasks are on the image of another one: the last is taken",
}


class LabelStudio(RecordsDataModule):
    """A data set that Label Studio exported as JSON or JSON-MIN: rectangles, and the boxes of polygons and ellipses.

    Images are found by their names below the folder, with or without the eight characters that an upload puts in front
    of a name. Of several annotations of a task, the last one that is submitted is taken.

    Args:
        path: the file, or a folder with one (or with several that are called train, val and test).
        images: the folder of the images; by default they are searched below the file's folder.
        shared: see RecordsDataModule.
    """

    def __init__(self, path: str = "data/label_studio.json", images: str | None = None, **shared: Any) -> None:
        super().__init__(path, **shared)
        self.images = images
        files = find_split_files(
            self.path, ".json", lambda file: json_kind(file) == "LabelStudio", "exports of Label Studio"
        )
        self.use_records({split: read_tasks(file, images) for split, file in files.items()})


def read_tasks(file: str, images: str | None = None) -> Records:
    """The images of an export and their objects.

    Args:
        file: the export.
        images: the folder of the images; None searches below the file's folder.

    Raises:
        DataError: the file is no such export, an image is not there, or a region has no numbers.
    """
    root = images or os.path.dirname(file) or "."
    finder = ImageFinder(root, " as images")
    counts: Counter[str] = Counter()
    found: dict[str, ImageRecord] = {}
    for number, task in enumerate(decode(file, list[dict[str, Any]], TASKS)):
        where = f"{file}: task {task.get('id', number)}"
        with one_item():
            results = _results(task, counts)
            if results is None:
                counts["not_annotated"] += 1
                continue
            data = task["data"] if isinstance(task.get("data"), dict) else task
            image = finder.find_any(_image_names(data, where), where)
            objects: list[ObjectRecord] = []
            size = (0, 0)
            for place, result in enumerate(results, 1):
                size = _size(result) or size
                for name, box in _regions(result, size, os.path.join(root, image), f"{where}: result {place}", counts):
                    objects.append(ObjectRecord(name, box, place))
            counts["duplicate"] += image in found
            found[image] = ImageRecord(image.replace(os.sep, "/"), image, where, objects, *size, normalized=True)
    return Records(root, list(found.values()), [*finder.findings(file), *counted(counts, COUNTED, file)])


def _results(task: Mapping[str, Any], counts: Counter[str]) -> list[dict[str, Any]] | None:
    """The results of a task's last submitted annotation, each with a `value`; None where there is none."""
    annotations = task.get("annotations", task.get("completions"))
    if isinstance(annotations, list):
        submitted = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
        counts["several_annotations"] += len(submitted) > 1
        results = submitted[-1].get("result") if submitted else None
        results = results if isinstance(results, list) else []
        return [each for each in results if isinstance(each, dict)] if submitted else None
    # JSON-MIN: the results are in lists called as the labelling tags, and have no `value`.
    lists = [each for each in task.values() if isinstance(each, list)]
    return [{"value": each, **each} for values in lists for each in values if isinstance(each, dict)]


def _image_names(data: Mapping[str, Any], where: str) -> list[str]:
    """The names that the image of a task may have, of a path or a URL; the first is the likeliest."""
    texts = [each for key in ("image", "img", "url", *data) if isinstance(each := data.get(key), str)]
    for text in texts:
        parts = urlsplit(text)
        query = parse_qs(parts.query).get("d", [])
        path = query[0] if query else unquote(parts.path) if "://" in text or parts.query else text
        if not is_image_name(path):
            continue
        folder, slash, name = path.replace("\\", "/").rpartition("/")
        upload = re.sub(r"^[0-9a-f]{8}-", "", name)
        return list(dict.fromkeys([path, folder + slash + upload, name, upload]))
    raise DataError(f"{where}: its data names no image: {short_repr(dict(data))}")


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = result.get("original_width"), result.get("original_height")
    sizes = [int(side) for side in (width, height) if isinstance(side, int | float) and 0 < side < LARGEST]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else None


def _regions(
    result: Mapping[str, Any], size: tuple[int, int], image: str, where: str, counts: Counter[str]
) -> Iterator[tuple[str, Box]]:
    """(class, box in shares of the sides) for each label of a result; none where it is no region."""
    value = result.get("value")
    if not isinstance(value, dict):
        counts["no_box"] += 1
        return
    labels = next((each for key, each in value.items() if key.endswith("labels") and isinstance(each, list)), [])
    is_outline = "points" in value or "radiusX" in value
    if not is_outline and not {"x", "y", "width", "height"} <= set(value):
        counts["no_box"] += 1
        return
    if not labels:
        # A rectangle and its label may be two results of one id: the one with the label counts.
        counts["no_label"] += result.get("type") not in ("rectangle", "polygon", "ellipse")
        return
    try:
        box = (_outline if is_outline else _rectangle)(value, size, image)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: {short_repr(dict(value))} is no region in percent of the image's sides") from None
    counts["from_outline"] += is_outline
    counts["rotated"] += bool(value.get("rotation")) and "points" not in value
    counts["image_rotation"] += bool(result.get("image_rotation"))
    counts["several_classes"] += len(labels) > 1
    for label in labels:
        yield str(label).strip(), box


def _rectangle(value: Mapping[str, Any], size: tuple[int, int], image: str) -> Box:
    """The box around a rectangle that is turned clockwise about its first corner, by degrees, in pixels."""
    x, y, width, height = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
    angle = math.radians(float(value.get("rotation") or 0))
    if not angle:
        return x, y, x + width, y + height
    sides = size if all(size) else image_size(image)
    across = (width * math.cos(angle), width * math.sin(angle) * sides[0] / sides[1])
    down = (-height * math.sin(angle) * sides[1] / sides[0], height * math.cos(angle))
    xs = [x + a * across[0] + b * down[0] for a in (0, 1) for b in (0, 1)]
    ys = [y + a * across[1] + b * down[1] for a in (0, 1) for b in (0, 1)]
    return min(xs), min(ys), max(xs), max(ys)


def _outline(value: Mapping[str, Any], size: tuple[int, int], image: str) -> Box:
    """The box around a polygon, or an ellipse that is turned about its centre, by degrees, in pixels."""
    if "points" in value:
        xs, ys = zip(*((float(x) / 100, float(y) / 100) for x, y in value["points"]), strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    x, y, across, down = (float(value[key]) / 100 for key in ("x", "y", "radiusX", "radiusY"))
    if angle := math.radians(float(value.get("rotation") or 0)):
        width, height = size if all(size) else image_size(image)
        a, b = across * width, down * height
        across = math.hypot(a * math.cos(angle), b * math.sin(angle)) / width
        down = math.hypot(a * math.sin(angle), b * math.cos(angle)) / height
    return x - across, y - down, x + across, y + down
