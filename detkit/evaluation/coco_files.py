"""COCO's annotations and results as COCOeval reads them, as flat arrays.

No box is clipped, rounded or dropped, and areas are the annotations' own, so that all numbers are COCOeval's from the
same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import Finding, UnknownIdPolicy
from detkit.data.coco_files import (
    Annotation,
    Category,
    Image,
    areas_of,
    boxes_of,
    flags_of,
    no_garbage_collection,
    read_instances,
    read_results,
)
from detkit.data.input_files import check_printable
from detkit.errors import DataError
from detkit.evaluation.evaluation_files import Detected, EvaluationFiles, Objects, assemble, unknown_id_policy

Ids = Sequence[Any] | np.ndarray
#: Beyond it, differences of ids may not fit into 64 bits.
FAR = 2**62


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
        results, found = read_results(detections)
        policy.findings += found
        image_ids = _with_file_names(results.image_ids, index.numbers, images, str(detections), policy)
        numbers, labels = index.of(image_ids, results.category_ids, "detections", str(detections))
    detected = Detected(numbers, results.boxes, results.scores, labels)
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

    def of(self, image_ids: Ids, category_ids: Ids, what: str, source: str) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers (N,) int64 and labels (N,) int32; negative for rows to be left out."""
        numbers = _look_up(self.numbers, image_ids)
        self.policy.check(numbers, lambda row: _plain(image_ids[row]), what, "images", source, self.numbers)
        labels = _look_up(self.labels, category_ids).astype(np.int32)
        self.policy.check(labels, lambda row: _plain(category_ids[row]), what, "classes", source, self.labels)
        return numbers, labels


def _look_up(table: dict[Any, int], ids: Ids) -> np.ndarray:
    """What `table` has for each id, (N,) int64; -1 for nothing."""
    if isinstance(ids, np.ndarray):
        known = np.array(sorted(key for key in table if isinstance(key, int)), np.int64)
        numbers = np.array([*(table[key] for key in known.tolist()), -1])
        first, last = (int(known[0]), int(known[-1])) if len(known) else (0, 0)
        if last - first < len(ids) and first > -FAR and last < FAR:  # all numbers between are fewer than the ids
            between = np.full(last - first + 3, -1)
            between[known - first + 1] = numbers[:-1]
            return between[np.clip(ids, first - 1, last + 1) - first + 1]
        at = np.searchsorted(known, ids)
        return numbers[np.where(np.append(known, 0)[at] == ids, at, -1)]
    return np.fromiter(map(table.get, ids, repeat(-1)), np.int64, len(ids))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _with_file_names(
    image_ids: Ids, known: Container[Any], images: Sequence[Image], source: str, policy: UnknownIdPolicy
) -> Ids:
    """The ids of detections, with those of images that they name by their files, as detections on a folder do."""
    if isinstance(image_ids, np.ndarray):  # whole numbers
        return image_ids
    named = {name for name in image_ids if isinstance(name, str) and name not in known}
    if not named:
        return image_ids
    id_of = {image.file_name.replace("\\", "/"): image.id for image in images if isinstance(image.file_name, str)}
    counts = Counter(name.rpartition("/")[2] for name in id_of)
    last = {short: number for name, number in id_of.items() if counts[short := name.rpartition("/")[2]] == 1}
    # Of two images a/1.jpg and b/1.jpg, neither is known to be the one that the annotations call 1.jpg.
    given = Counter(name.rpartition("/")[2] for name in named - id_of.keys())
    last = {short: number for short, number in last.items() if given[short] == 1}
    found = {name: id_of.get(name, last.get(name.rpartition("/")[2])) for name in named}
    found = {name: number for name, number in found.items() if number is not None}
    if matched := sum(name in found for name in image_ids):
        text = f"{matched:,} detections name their images by file: matched with file_name in the annotations"
        policy.findings.append(Finding("by_file_name", source, None, text, matched))
    return [found.get(name, name) for name in image_ids]


def _objects(rows: Sequence[Annotation], source: str, index: _Index) -> Objects:
    image_ids, category_ids = ([getattr(row, name) for row in rows] for name in ("image_id", "category_id"))
    numbers, labels = index.of(image_ids, category_ids, "annotations", source)
    boxes = boxes_of(rows)
    crowd, difficult = flags_of(rows, "iscrowd"), flags_of(rows, "difficult")
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
