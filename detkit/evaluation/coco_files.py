"""COCO's files: instances JSON and results JSON, read as COCOeval reads them, into flat arrays.

Numbers are taken as they are written: no box is clipped, rounded or dropped, and areas are the annotations' own, so
that all numbers are COCOeval's from the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detkit.errors import DataError

from .from_files import Detected, EvaluationFiles, Objects, Strangers, assemble
from .json_files import decode, no_collection

# Numbers come as floats, too, from programs that keep ids in tables of floats: 7.0 is 7 to COCOeval.
ImageId = int | float | str
CategoryId = int | float
Flag = bool | int | float | None
Box = tuple[float, float, float, float]

# Only what is needed is decoded. `gc=False`: none of these is ever part of a cycle.


class Image(msgspec.Struct, gc=False):
    """An image as COCO's annotations have it."""

    id: ImageId
    file_name: Any = None


class Category(msgspec.Struct, gc=False):
    """A category as COCO's annotations have it."""

    id: CategoryId
    name: Any = None


class Annotation(msgspec.Struct, gc=False):
    """An object as COCO's annotations have it.

    Its id is not read. COCOeval keeps "matched to annotation i" as i, so that one with id 0 counts as not matched, and
    two with the same id as one; nothing here goes by ids.
    """

    image_id: ImageId
    category_id: CategoryId
    bbox: Box
    area: float | None = None
    iscrowd: Flag = 0
    ignore: Flag = 0
    difficult: Flag = 0


class Instances(msgspec.Struct, gc=False):
    """COCO's annotations."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Result(msgspec.Struct, gc=False):
    """A detection as COCO's results have it."""

    image_id: ImageId
    category_id: CategoryId
    bbox: Box
    score: float


def read_coco_results(
    detections: str | Path,
    annotations: str | Path,
    *,
    other_images: str = "error",
    other_classes: str = "error",
) -> EvaluationFiles:
    """Reads COCO's results for COCO's annotations; either file may be packed by gzip.

    Args:
        detections: a JSON list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
        annotations: JSON with images, annotations and categories.
        other_images: "error", or "drop" to leave out what is of images that the annotations do not list.
        other_classes: "error", or "drop" to leave out what is of categories that they do not list, as COCOeval does.

    Raises:
        DataError: a file is missing or not in COCO's format, or names an image or a category that there is not.
    """
    detections, annotations = Path(detections), Path(annotations)
    strangers = Strangers(annotations, other_images, other_classes)
    with no_collection():
        instances = decode(annotations, Instances, "an object with images, annotations and categories")
        images = _images(instances.images, annotations)
        names, ids = _categories(instances.categories, annotations)
        places = _Places(images, ids, strangers)
        objects = _objects(instances.annotations, annotations, places)
        del instances
        rows = decode(detections, list[Result], "a list of {image_id, category_id, bbox, score}")
        detected = _detected(rows, detections, places)
    return EvaluationFiles(
        evaluation_set=assemble([image.id for image in images], objects, detected),
        class_names=names,
        category_ids=ids,
        image_files=[image.file_name if isinstance(image.file_name, str) else "" for image in images],
        data=str(annotations),
        protocol="coco",
        findings=strangers.findings,
    )


def _images(images: list[Image], source: Path) -> list[Image]:
    """The images in the order of their ids."""
    if not images:
        raise DataError(f"{source}: the list 'images' is empty; there is nothing to evaluate on")
    for image in images:
        image.id = _whole(image.id)
    if len({isinstance(image.id, str) for image in images}) > 1:
        raise DataError(f"{source}: ids of images are numbers and strings; write them alike")
    images = sorted(images, key=lambda image: image.id)
    for one, other in pairwise(images):
        if one.id == other.id:
            raise DataError(f"{source}: image id {one.id!r} is given twice; ids must be unique")
    return images


def _categories(categories: list[Category], source: Path) -> tuple[list[str], list[int]]:
    """Names and ids in the order of the ids; names that several categories share gain their ids."""
    if not categories:
        raise DataError(f"{source}: the list 'categories' is empty; there is nothing to evaluate")
    name_of = {_whole(each.id): each.name for each in categories}
    if len(name_of) != len(categories):
        raise DataError(f"{source}: a category id is given twice; ids must be unique")
    ids = sorted(name_of)
    names = [f"category {each}" if name_of[each] is None else str(name_of[each]) for each in ids]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({each})" if name in shared else name for name, each in zip(names, ids, strict=True)], ids


class _Places:
    """From ids of images and categories to image numbers and labels."""

    def __init__(self, images: Sequence[Image], category_ids: Sequence[int], strangers: Strangers) -> None:
        self.numbers = {image.id: number for number, image in enumerate(images)}
        self.labels = {category: label for label, category in enumerate(category_ids, 1)}
        self.strangers = strangers

    def of(self, rows: Sequence[Any], what: str, source: Path) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers (N,) int64 and labels (N,) int32; negative for rows to be left out."""
        images = np.fromiter((self.numbers.get(row.image_id, -1) for row in rows), np.int64, len(rows))
        self.strangers.check(images, lambda i: rows[i].image_id, what, "images", source, self.numbers)
        labels = np.fromiter((self.labels.get(row.category_id, -1) for row in rows), np.int32, len(rows))
        self.strangers.check(labels, lambda i: rows[i].category_id, what, "classes", source, self.labels)
        return images, labels


def _objects(rows: list[Annotation], source: Path, places: _Places) -> Objects:
    images, labels = places.of(rows, "annotations", source)
    boxes = _boxes(rows)
    area = _floats(float("nan") if row.area is None else row.area for row in rows)
    crowd = np.fromiter((bool(row.iscrowd) for row in rows), bool, len(rows))
    difficult = np.fromiter((bool(row.ignore) or bool(row.difficult) for row in rows), bool, len(rows))
    if count := int((difficult & ~crowd).sum()):
        places.strangers.findings.append(
            f"{source}: {count:,} objects are marked difficult or ignore, which COCOeval does not "
            "know: --difficult count takes them for ordinary ones, as it does"
        )
    area = np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area)
    return Objects(images, boxes, labels, difficult, crowd, area)


def _detected(rows: list[Result], source: Path, places: _Places) -> Detected:
    images, labels = places.of(rows, "detections", source)
    return Detected(images, _boxes(rows), _floats(row.score for row in rows), labels)


def _boxes(rows: Sequence[Any]) -> np.ndarray:
    """(N, 4) float64."""
    values = chain.from_iterable(row.bbox for row in rows)
    return np.fromiter(values, np.float64, 4 * len(rows)).reshape(-1, 4)


def _floats(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float64)


def _whole(number: int | float | str) -> Any:
    """7 for 7.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number
