"""Ground truth and detections from files: what the readers of COCO's and VOC's files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Finding, UnknownIdPolicy
from detkit.evaluation.evaluation_set import DETECTION_FIELDS, OBJECT_FIELDS, EvaluationSet, offsets_of


@dataclass(frozen=True)
class EvaluationFiles:
    """Ground truth and detections as read from files."""

    evaluation_set: EvaluationSet  # I images in the order of their ids, boxes as the files have them
    class_names: list[str]  # K, in the order of the labels
    category_ids: list[int]  # K, the files' own; of VOC 1..K
    image_files: list[str]  # I, relative to the images' folder in COCO's files, full paths in VOC's; "" where unknown
    data: str  # the ground truth as it was named
    protocol: str  # the protocol that goes with the layout of the files
    findings: list[Finding]  # what a user should know about the files
    split: str | None = None  # the image set; None for COCO's files


def unknown_id_policy(ground_truth: str, other_images: str, other_classes: str) -> UnknownIdPolicy:
    """What an evaluation does with rows of images or classes that the ground truth does not have."""
    advice = (
        "Give files (for VOC also the split) that belong together, or leave such rows out with --other_images drop "
        "or --other_classes drop"
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
    object_offsets, *object_fields = _by_image(objects, len(image_ids))
    detection_offsets, *detection_fields = _by_image(detected, len(image_ids))
    return EvaluationSet(
        image_ids=list(image_ids),
        object_offsets=object_offsets,
        detection_offsets=detection_offsets,
        **dict(zip(OBJECT_FIELDS, object_fields, strict=True)),
        **dict(zip(DETECTION_FIELDS, detection_fields, strict=True)),
    )


def _by_image(rows: Objects | Detected, count: int) -> list[np.ndarray]:
    """The offsets of `count` images, and the fields of the rows that are kept, image by image."""
    kept = np.flatnonzero((rows.images >= 0) & (rows.labels >= 0))
    images = rows.images[kept]
    offsets = offsets_of(np.bincount(images, minlength=count))
    if (images[1:] < images[:-1]).any():
        kept = kept[np.argsort(images, kind="stable")]
    elif len(kept) == len(rows.images):
        return [offsets, *rows[1:]]  # all stay where they are
    return [offsets, *(values[kept] for values in rows[1:])]
