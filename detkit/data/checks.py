"""What may be wrong with annotations that can be read: boxes, classes and sets, looked at without opening an image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import UNKNOWN_SIDE, Annotations, Finding

TINY = 4.0  # pixels; the square root of a box's area
WHOLE = 0.99  # of the image's area
NEAR = 0.9  # IoU of two boxes of one class
CROWDS = 0.2  # share of boxes


class Check(NamedTuple):
    """A finding, and where it is to be seen.

    Attributes:
        split: the set.
        finding: what was found.
        image: index in the set, or None.
        rows: of the boxes, in the annotations of the set.
    """

    split: str
    finding: Finding
    image: int | None = None
    rows: tuple[int, ...] = ()


def check_annotations(
    splits: Mapping[str, Annotations], class_names: Sequence[str], max_detections: int | None = None
) -> list[Check]:
    """Everything that is found without opening an image.

    Args:
        splits: train, val and test, as far as there are.
        class_names: of the labels 1..K.
        max_detections: how many objects a detector finds in an image; None is not compared.
    """
    found = [*check_classes(splits, class_names)]
    for split, part in splits.items():
        found += check_boxes(split, part, class_names)
        found += check_images(split, part, max_detections)
    return [*found, *check_sets(splits)]


def quick_checks(
    splits: Mapping[str, Annotations], class_names: Sequence[str], max_detections: int | None
) -> dict[str, list[Finding]]:
    """Split -> what is found in a second or so, and changes what a run learns or measures.

    Args:
        splits, class_names, max_detections: as for `check_annotations`.
    """
    found = [check for check in check_classes(splits, class_names) if check.finding.kind == "alike_classes"]
    for split, part in splits.items():
        found += [check for check in check_images(split, part, max_detections) if check.finding.kind != "crowds"]
        for row in _repeated(part).tolist():
            owner = int(np.searchsorted(part.offsets, row, "right")) - 1
            found.append(_of_boxes("same_box", split, part, class_names, owner, (row,), "is there twice"))
    findings: dict[str, list[Finding]] = {}
    for check in [*found, *check_sets(splits)]:
        findings.setdefault(check.split, []).append(check.finding)
    return findings


def _repeated(annotations: Annotations) -> np.ndarray:
    """Rows of boxes that are there before in the same image with the same class."""
    owners = np.repeat(np.arange(len(annotations)), annotations.counts)
    rows = np.column_stack([owners, annotations.labels, annotations.boxes]).astype(np.float64)
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return np.flatnonzero(repeated & ~annotations.crowd)


def check_boxes(split: str, annotations: Annotations, class_names: Sequence[str]) -> Iterator[Check]:
    """Boxes that are tiny, as large as their image, or given twice."""
    boxes = annotations.boxes.astype(np.float64)
    owners = np.repeat(np.arange(len(annotations)), annotations.counts)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    sides = np.stack([annotations.widths, annotations.heights], 1).astype(np.float64)
    image_area = sides.prod(1)[owners]
    kinds = (
        ("tiny", np.sqrt(area) < TINY, f"is less than {TINY:g} x {TINY:g} pixels"),
        ("whole_image", (area >= WHOLE * image_area) & (image_area < UNKNOWN_SIDE**2), "covers the whole image"),
    )
    for kind, rows, text in kinds:
        for row in np.flatnonzero(rows).tolist():
            yield _of_boxes(kind, split, annotations, class_names, owners[row], (row,), text)
    for first, second, iou in duplicate_boxes(annotations):
        exact = iou > 1 - 1e-6
        text = "is there twice" if exact else f"is there twice, almost alike (IoU {iou:.2f})"
        kind = "same_box" if exact else "near_box"
        yield _of_boxes(kind, split, annotations, class_names, owners[first], (first, second), text)


def duplicate_boxes(annotations: Annotations) -> list[tuple[int, int, float]]:
    """Pairs of rows, the lower first, of boxes of one image and class with an IoU above `NEAR`; and their IoU.

    Crowds are left out.
    """
    pairs = []
    for start, end in zip(annotations.offsets[:-1].tolist(), annotations.offsets[1:].tolist(), strict=True):
        if end - start < 2:
            continue
        boxes = annotations.boxes[start:end].astype(np.float64)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        shared = np.maximum(high - low, 0).prod(2)
        iou = shared / np.maximum(area[:, None] + area[None] - shared, 1e-9)
        labels, crowd = annotations.labels[start:end], annotations.crowd[start:end]
        alike = (iou > NEAR) & (labels[:, None] == labels[None]) & ~crowd[:, None] & ~crowd[None]
        rows, columns = np.nonzero(np.triu(alike, 1))
        pairs += [
            (start + i, start + j, float(iou[i, j])) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
    return pairs


def check_images(split: str, annotations: Annotations, max_detections: int | None) -> Iterator[Check]:
    """Images that are there twice or have too many objects, and a set with many crowds."""
    first: dict[str, int] = {}
    for index, file in enumerate(annotations.files.tolist()):
        earlier = first.setdefault(os.path.normpath(file), index)
        if earlier != index:
            ids = f"{annotations.image_id(earlier)!r} and {annotations.image_id(index)!r}"
            yield Check(split, Finding("file_twice", annotations.path(index), None, f"is the image of {ids}"), index)
    counts = np.bincount(
        np.repeat(np.arange(len(annotations)), annotations.counts)[~annotations.crowd], minlength=len(annotations)
    )
    for index in np.flatnonzero(counts > max_detections).tolist() if max_detections is not None else ():
        text = f"has {counts[index]:,} objects; a detector finds at most {max_detections:,} in an image"
        yield Check(split, Finding("many_objects", annotations.path(index), None, text), index)
    crowds = int(annotations.crowd.sum())
    if crowds > CROWDS * len(annotations.boxes):
        text = f"{crowds:,} of {len(annotations.boxes):,} boxes are crowds, and are not trained on"
        yield Check(split, Finding("crowds", annotations.root, None, text, crowds))


def check_classes(splits: Mapping[str, Annotations], class_names: Sequence[str]) -> Iterator[Check]:
    """Classes whose names differ by upper and lower case or white space, and those without a box to learn from."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in class_names:
        alike["".join(name.casefold().replace("_", " ").replace("-", " ").split())].append(name)
    train = splits.get("train", splits.get("all"))
    root = train.root if train is not None else ""
    for names in alike.values():
        if len(names) > 1:
            counted = ", ".join(_counted_class(splits, name, class_names.index(name) + 1) for name in names)
            text = f"the classes {counted} differ by case or white space only"
            yield Check("train", Finding("alike_classes", root, None, text))
    if train is None:
        return
    counts = np.bincount(train.labels[~train.crowd], minlength=len(class_names) + 1)[1:]
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count == 0:
            yield Check("train", Finding("no_training_box", root, None, f"no box of the class {name!r} to learn from"))


def _counted_class(splits: Mapping[str, Annotations], name: str, label: int) -> str:
    """A class with the number of its boxes in all sets, and an image with one."""
    rows = [(part, row) for part in splits.values() for row in np.flatnonzero(part.labels == label).tolist()]
    if not rows:
        return f"{name!r} (no box)"
    part, row = rows[0]
    image = int(np.searchsorted(part.offsets, row, "right")) - 1
    return f"{name!r} ({len(rows):,} {'boxes' if len(rows) > 1 else 'box'}, such as in {part.files[image]})"


def check_sets(splits: Mapping[str, Annotations]) -> Iterator[Check]:
    """Images that are in two sets, by file or by id."""
    files: dict[str, str] = {}
    ids: dict[str, str] = {}
    own_names = [set(map(str, part.image_ids)) for part in splits.values()]
    # Numbers from 0 or 1 on are counted anew in every set: only names say that an image is the same.
    named = all(not name.isdecimal() for names in own_names for name in list(names)[:100])
    for split, part in splits.items():
        for index in range(len(part)):
            path = part.path(index)
            by_file = files.setdefault(os.path.realpath(path), split)
            by_id = ids.setdefault(str(part.image_id(index)), split) if named else split
            if by_file != split or by_id != split:
                other, what = (by_file, "the file") if by_file != split else (by_id, "an image of this id")
                yield Check(split, Finding("in_two_sets", path, None, f"{what} is in {other}, too"), index)


def _of_boxes(
    kind: str,
    split: str,
    annotations: Annotations,
    class_names: Sequence[str],
    image: int,
    rows: tuple[int, ...],
    text: str,
) -> Check:
    corners = ", ".join(f"{value:g}" for value in annotations.boxes[rows[0]].tolist())
    name = class_names[int(annotations.labels[rows[0]]) - 1]
    finding = Finding(kind, annotations.path(int(image)), None, f"{name} [{corners}] {text}")
    return Check(split, finding, int(image), rows)
