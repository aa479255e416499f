"""Ground truth and detections from files: what the readers of COCO's and VOC's files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Finding, UnknownIdPolicy
from detkit.evaluation.evaluation_set import EvaluationSet


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
        findings: what was met and a user should know.
    """

    evaluation_set: EvaluationSet
    class_names: list[str]
    category_ids: list[int]
    image_files: list[str]
    data: str
    protocol: str
    split: str | None = None
    findings: list[Finding] = field(default_factory=list)


def unknown_id_policy(ground_truth: str, other_images: str, other_classes: str) -> UnknownIdPolicy:
    """What an evaluation does with rows of images or classes that the ground truth does not have."""
    advice = (
        "Give files (for VOC also the split) that belong together, or leave such rows out with other_images=drop or "
        "other_classes=drop"
    )
    return UnknownIdPolicy(ground_truth, other_images, other_classes, advice)


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
    detected_boxes, scores, detected_labels = (values if rows is None else values[rows] for values in detected[1:])
    return EvaluationSet(
        image_ids=list(image_ids),
        boxes=boxes,
        labels=labels,
        difficult=difficult,
        crowd=crowd,
        area=area,
        object_offsets=object_offsets,
        detected_boxes=detected_boxes,
        scores=scores,
        detected_labels=detected_labels,
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
