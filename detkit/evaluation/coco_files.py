"""COCO's annotations and results as COCOeval reads them, as flat arrays.

No box is clipped, rounded or dropped, and areas are the annotations' own, so that all numbers are COCOeval's from the
same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import Finding, UnknownIdPolicy
from detkit.data.coco_files import (
    Annotation,
    Category,
    Image,
    Result,
    areas_of,
    boxes_of,
    flags_of,
    no_garbage_collection,
    numbers_of,
    read_instances,
    read_results,
)
from detkit.data.input_files import check_printable
from detkit.errors import DataError
from detkit.evaluation.evaluation_files import Detected, EvaluationFiles, Objects, assemble, unknown_id_policy


def read_coco_results(
    detections: str | Path,
    annotations: str | Path,
    *,
    other_images: str = "error",
    other_classes: str = "error",
) -> EvaluationFiles:
    """Read COCO's results for COCO's annotations; either file may be packed by gzip.

    Args:
        detections: a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
        annotations: JSON with images, annotations and categories.
        other_images: "error", or "drop" to leave out what is of images that the annotations do not list.
        other_classes: "error", or "drop" to leave out what is of categories that they do not list, as COCOeval does.

    Raises:
        DataError: a file is missing or not in COCO's format, or names an image or a category that there is not.
    """
    policy = unknown_id_policy(str(annotations), other_images, other_classes)
    with no_garbage_collection():
        instances = read_instances(annotations)
        images = sorted(instances.images, key=lambda image: image.id)
        names, ids = _classes(instances.categories)
        for name in names:
            check_printable(name, f"{annotations}: class name")
        index = _Index([image.id for image in images], ids, policy)
        if not instances.annotated:
            raise DataError(f"{annotations}: has no list of annotations: there is nothing to compare with")
        objects = _objects(instances.annotations, str(annotations), index)
        policy.findings[:0] = instances.findings
        del instances
        rows, found = read_results(detections)
        policy.findings += found
        images_there = index.images_of(rows)
        if _use_file_names([rows[i] for i in np.flatnonzero(images_there < 0)], images, str(detections), policy):
            images_there = index.images_of(rows)
        numbers, labels = index.of(rows, images_there, "detections", str(detections))
        detected = Detected(numbers, boxes_of(rows), numbers_of(rows, "score"), labels)
    return EvaluationFiles(
        evaluation_set=assemble([image.id for image in images], objects, detected),
        class_names=names,
        category_ids=ids,
        image_files=[image.file_name if isinstance(image.file_name, str) else "" for image in images],
        data=str(annotations),
        protocol="coco",
        findings=policy.findings,
    )


def _classes(categories: Sequence[Category]) -> tuple[list[str], list[int]]:
    """Names and ids in the order of the ids; names that several categories share gain their ids."""
    name_of = {category.id: category.name for category in categories}
    ids = sorted(name_of)
    names = [f"category {number}" if name_of[number] is None else str(name_of[number]) for number in ids]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({number})" if name in shared else name for name, number in zip(names, ids, strict=True)], ids


class _Index:
    """From ids of images and categories to image numbers and labels."""

    def __init__(self, image_ids: Sequence[int | str], category_ids: Sequence[int], policy: UnknownIdPolicy) -> None:
        self.numbers = {image_id: number for number, image_id in enumerate(image_ids)}
        self.labels = {category: label for label, category in enumerate(category_ids, 1)}
        self.policy = policy

    def of(
        self, rows: Sequence[Annotation | Result], numbers: np.ndarray, what: str, source: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers (N,) int64, which `images_of` gives, and labels (N,) int32; negative for rows to be left out."""
        self.policy.check(numbers, lambda row: rows[row].image_id, what, "images", source, self.numbers)
        labels = _look_up(self.labels, rows, "category_id").astype(np.int32)
        self.policy.check(labels, lambda row: rows[row].category_id, what, "classes", source, self.labels)
        return numbers, labels

    def images_of(self, rows: Sequence[Annotation | Result]) -> np.ndarray:
        """Image numbers (N,) int64; -1 for an id that is not known."""
        return _look_up(self.numbers, rows, "image_id")


def _look_up(table: dict[Any, int], rows: Sequence[Any], name: str) -> np.ndarray:
    """What `table` has for a field of each row, (N,) int64; -1 for nothing."""
    return np.fromiter(map(table.get, map(attrgetter(name), rows), repeat(-1)), np.int64, len(rows))


def _use_file_names(rows: Sequence[Result], images: Sequence[Image], source: str, policy: UnknownIdPolicy) -> int:
    """Give detections of unknown images that name these by their files, as those on a folder do, the images' ids.

    Returns:
        How many were given one.
    """
    named = [row for row in rows if isinstance(row.image_id, str)]
    if not named:
        return 0
    id_of = {image.file_name.replace("\\", "/"): image.id for image in images if isinstance(image.file_name, str)}
    counts = Counter(name.rpartition("/")[2] for name in id_of)
    last = {short: number for name, number in id_of.items() if counts[short := name.rpartition("/")[2]] == 1}
    # Of two images a/1.jpg and b/1.jpg, neither is known to be the one that the annotations call 1.jpg.
    given = Counter(name.rpartition("/")[2] for name in {row.image_id for row in named} - id_of.keys())
    last = {short: number for short, number in last.items() if given[short] == 1}
    matched = 0
    for row in named:
        found = id_of.get(row.image_id, last.get(row.image_id.rpartition("/")[2]))
        if found is not None:
            row.image_id = found
            matched += 1
    if matched:
        text = f"{matched:,} detections name their images by file: matched with file_name in the annotations"
        policy.findings.append(Finding("by_file_name", source, None, text, matched))
    return matched


def _objects(rows: Sequence[Annotation], source: str, index: _Index) -> Objects:
    numbers, labels = index.of(rows, index.images_of(rows), "annotations", source)
    boxes = boxes_of(rows)
    crowd = flags_of((row.iscrowd for row in rows), len(rows))
    difficult = flags_of((row.difficult for row in rows), len(rows))
    if count := int((difficult & ~crowd).sum()):
        text = (
            f"{count:,} objects are marked difficult, which COCOeval does not know: --difficult count takes them for "
            "ordinary ones, as it does"
        )
        index.policy.findings.append(Finding("difficult", source, None, text, count))
    area = areas_of(rows)
    area = np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area)
    # Their ids are not used. COCOeval keeps "matched to annotation i" as i, so that one with id 0 counts as not
    # matched, and two with the same id as one.
    return Objects(numbers, boxes, labels, difficult, crowd, area)
