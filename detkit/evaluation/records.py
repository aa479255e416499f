"""What an evaluation keeps of an image: its objects and its detections, checked, as small arrays on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from detkit.errors import DataError


@dataclass(frozen=True, eq=False, slots=True)
class ImageRecord:
    """One image: G objects and D detections, boxes half-open x1 y1 x2 y2 in pixels.

    image_id is None where none was given. Arrays: boxes (G, 4), detected_boxes (D, 4) and scores (D,)
    float32, or float64 where that came; labels (G,) and detected_labels (D,) int32; difficult and
    crowd (G,) bool; area (G,) float64, square pixels.
    """

    image_id: str | int | None
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    detected_boxes: np.ndarray
    scores: np.ndarray
    detected_labels: np.ndarray

    def __deepcopy__(self, memo: dict) -> ImageRecord:
        """Itself: nothing changes a record, so a metric's state is copied without copying boxes."""
        return self


def make_record(detections: Mapping[str, Any], target: Mapping[str, Any], num_classes: int | None) -> ImageRecord:
    """The record of one image from its Detections and its Sample.

    Raises DataError, with the image's id, where a field is missing, has another length than its
    boxes, is not finite, or holds a label outside 1..num_classes (no upper end for None).
    """
    image_id = target.get("image_id")
    if isinstance(image_id, (torch.Tensor, np.generic)):
        image_id = image_id.item()
    where = "an image without image_id" if image_id is None else f"image {image_id!r}"
    boxes = _boxes(target, "target", where)
    detected_boxes = _boxes(detections, "detections", where)
    count = len(boxes)
    area = _field(target, "area", "target", where, count, optional=True)
    if area is None:
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        area = (x2 - x1) * (y2 - y1)
    return ImageRecord(
        image_id=image_id,
        boxes=boxes,
        labels=_labels(target, "target", where, count, num_classes),
        difficult=_flags(target, "difficult", where, count),
        crowd=_flags(target, "crowd", where, count),
        area=area.astype(np.float64),
        detected_boxes=detected_boxes,
        scores=_field(detections, "scores", "detections", where, len(detected_boxes)),
        detected_labels=_labels(detections, "detections", where, len(detected_boxes), num_classes),
    )


def unique_images(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """Each image once, the first of each id, in the order of the ids.

    A distributed sampler repeats images to make all ranks equally long; counting those twice would
    change the result. The fixed order makes results independent of who saw which image, for images
    with equal scores are compared in it. Images without an id are all kept, at the end.
    """
    first: dict[Any, ImageRecord] = {}
    nameless = []
    for record in records:
        if record.image_id is None:
            nameless.append(record)
        else:
            first.setdefault(record.image_id, record)
    numbers = sorted(key for key in first if not isinstance(key, str))
    names = sorted(key for key in first if isinstance(key, str))
    return [first[key] for key in (*numbers, *names)] + nameless


def _array(value: Any) -> np.ndarray:
    """`value` as float32 where it is float32 or half, else as float64, which holds every integer that occurs."""
    value = torch.as_tensor(value).detach().cpu()
    small = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return value.to(torch.float32 if small else torch.float64).numpy().copy()


def _field(
    source: Mapping[str, Any], key: str, owner: str, where: str, count: int, optional: bool = False
) -> np.ndarray | None:
    """`source[key]` as floats (count,), checked."""
    if key not in source:
        if optional:
            return None
        raise DataError(f"{where}: {owner} has no {key!r}: give it, one value for each box")
    values = _array(source[key])
    if values.shape != (count,):
        raise DataError(f"{where}: {owner} has {count} boxes but {key!r} of shape {values.shape}: give ({count},)")
    if not np.isfinite(values).all():
        raise DataError(f"{where}: {owner} has {key!r} that are not finite: look for NaN or infinity in the model")
    return values


def _boxes(source: Mapping[str, Any], owner: str, where: str) -> np.ndarray:
    if "boxes" not in source:
        raise DataError(f"{where}: {owner} has no 'boxes': give them, of shape (0, 4) for none")
    boxes = _array(source["boxes"])
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: {owner} has 'boxes' of shape {boxes.shape}: give (N, 4), and (0, 4) for none")
    if not np.isfinite(boxes).all():
        raise DataError(f"{where}: {owner} has 'boxes' that are not finite: look for NaN or infinity in the model")
    return boxes


def _labels(source: Mapping[str, Any], owner: str, where: str, count: int, num_classes: int | None) -> np.ndarray:
    labels = _field(source, "labels", owner, where, count).astype(np.int32)
    wrong = labels[(labels < 1) | (labels > (np.inf if num_classes is None else num_classes))]
    if len(wrong):
        limit = "..." if num_classes is None else num_classes
        raise DataError(f"{where}: {owner} has the label {wrong[0]}: labels are 1..{limit}, 0 is background")
    return labels


def _flags(target: Mapping[str, Any], key: str, where: str, count: int) -> np.ndarray:
    flags = _field(target, key, "target", where, count, optional=True)
    return np.zeros(count, dtype=bool) if flags is None else flags.astype(bool)
