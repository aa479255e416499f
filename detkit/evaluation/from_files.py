"""What the readers of result files share: what they hand over, and what they do with unknown images and classes."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import DataError

from .evaluation_set import EvaluationSet


@dataclass(frozen=True)
class EvaluationFiles:
    """Ground truth and detections as read from files.

    Attributes:
        evaluation_set: I images in the order of their ids, boxes as the files have them.
        class_names: K, in the order of the labels.
        category_ids: K, the files' own; of VOC 1..K.
        image_files: I, relative to the folder of the images in COCO's files, full paths in VOC's; "" where unknown.
        data: the ground truth as it was named.
        protocol: the protocol that goes with the layout of the files.
        split: the image set; None for COCO's files.
        findings: what was met and a user should know, a sentence each.
    """

    evaluation_set: EvaluationSet
    class_names: list[str]
    category_ids: list[int]
    image_files: list[str]
    data: str
    protocol: str
    split: str | None = None
    findings: list[str] = field(default_factory=list)


class Objects(NamedTuple):
    """Ground truth in the order of the files; image numbers (G,) int64, otherwise as in EvaluationSet."""

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


class Detected(NamedTuple):
    """Detections in the order of the files; image numbers (D,) int64, otherwise as in EvaluationSet."""

    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def assemble(image_ids: Sequence[int | str], objects: Objects, detected: Detected) -> EvaluationSet:
    """The set of these images; objects and detections of an image keep the order of the files, as COCOeval does.

    Rows whose image number or label is negative are left out.
    """
    count = len(image_ids)
    rows, object_offsets = _by_image(objects.images, objects.labels, count)
    boxes, labels, difficult, crowd, area = (values if rows is None else values[rows] for values in objects[1:])
    rows, detection_offsets = _by_image(detected.images, detected.labels, count)
    found, scores, found_labels = (values if rows is None else values[rows] for values in detected[1:])
    return EvaluationSet(
        image_ids=list(image_ids),
        boxes=boxes,
        labels=labels,
        difficult=difficult,
        crowd=crowd,
        area=area,
        object_offsets=object_offsets,
        detected_boxes=found,
        scores=scores,
        detected_labels=found_labels,
        detection_offsets=detection_offsets,
    )


def _by_image(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The rows that are kept, image by image, and the offsets; no rows where all stay as they lie."""
    kept = np.flatnonzero((images >= 0) & (labels >= 0))
    inside = images if len(kept) == len(images) else images[kept]
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(inside, minlength=count), out=offsets[1:])
    if (inside[1:] >= inside[:-1]).all():
        return (None if len(kept) == len(images) else kept), offsets
    return kept[np.argsort(inside, kind="stable")], offsets


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzip's, without a byte order mark.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise DataError(f"{path}: file does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; give a file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return content.removeprefix(b"\xef\xbb\xbf")


class Strangers:
    """What is done with rows of images or classes that the ground truth does not have.

    Args:
        source: the ground truth, as messages name it.
        other_images, other_classes: "error", or "drop" to leave such rows out.

    Attributes:
        findings: a sentence for each kind of rows left out.
    """

    def __init__(self, source: Path | str, other_images: str, other_classes: str) -> None:
        self.source = source
        self._choices = {"images": other_images, "classes": other_classes}
        self.findings: list[str] = []

    def check(
        self, numbers: np.ndarray, owner_of: Callable[[int], Any], rows: str, owners: str, place: Path, known: Iterable
    ) -> None:
        """Speaks of the rows that are to be left out.

        Args:
            numbers: (N,) of each row's image or class, negative for one that there is not.
            owner_of: row -> its image's id or its class.
            rows: what the rows are: "detections" or "annotations".
            owners: "images" or "classes".
            place: where the rows are.
            known: the ids or classes there are.

        Raises:
            DataError: there are such rows, and they are not to be left out.
        """
        foreign = np.flatnonzero(numbers < 0) if len(numbers) and numbers.min() < 0 else ()
        if not len(foreign):
            return
        others = list(dict.fromkeys(map(owner_of, foreign.tolist())))
        there = list(known)
        counted = f"{len(foreign):,} of {len(numbers):,} {rows} are of {len(others):,} {owners} that {self.source}"
        if self._choices[owners] == "drop":
            self.findings.append(f"{place}: {counted} does not have ({_some(others)}): left out")
            return
        raise DataError(
            f"{place}: {counted} does not have: {_some(others)}; it has {_some(there)}{_other_kind(others, there)}. "
            f"Give files (for VOC also the split) that belong together, or leave such {rows} out with "
            f"other_{owners}=drop"
        )


def _some(values: list[Any]) -> str:
    return ", ".join(map(repr, values[:3])) + (", ..." if len(values) > 3 else "")


def _other_kind(others: list[Any], there: list[Any]) -> str:
    """What to say where the same ids are numbers in one file and strings in the other."""
    kinds = ["strings" if isinstance(each[0], str) else "numbers" for each in (others, there)]
    if kinds[0] != kinds[1] and {str(each) for each in others} & {str(each) for each in there}:
        return f" (ids are {kinds[0]} here and {kinds[1]} there: write them alike)"
    return ""
