"""The VOC protocols: the average precision of the development kits of 2007 and of 2010.

After the devkit's Python port in py-faster-rcnn (lib/datasets/voc_eval.py, papers.md 2.3): a
detection belongs to the object of its class it overlaps most, and to no other; it is a hit if that
IoU is above the threshold (strictly) and the object is not taken yet. Difficult objects are neither
hits nor misses, however often they are found. Boxes are half-open here, which makes the
devkit's inclusive "+1" arithmetic the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .records import ImageRecord


def evaluate(images: Sequence[ImageRecord], labels: Sequence[int], threshold: float, eleven_points: bool) -> np.ndarray:
    """The AP of each of `labels` (float64, in their order); NaN for one without objects to find.

    Crowds, which VOC has not, count as difficult. `eleven_points` is VOC2007's, else VOC2010's area.
    """
    average = average_precision_11 if eleven_points else average_precision_area
    result = np.full(len(labels), np.nan)
    for k, label in enumerate(labels):
        hits, misses, objects = count_hits(images, label, threshold)
        if objects:
            recall = np.cumsum(hits) / objects
            precision = np.cumsum(hits) / np.maximum(np.cumsum(hits) + np.cumsum(misses), np.finfo(np.float64).eps)
            result[k] = average(recall, precision)
    return result


def count_hits(images: Sequence[ImageRecord], label: int, threshold: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Hits and misses (both bool (D,)) of the detections of `label`, best score first, and the number of objects.

    Detections on an ignored object are neither. Equal scores keep their order.
    """
    scores, best_iou, best_object, ignored = [], [], [], []
    objects = 0
    for image in images:
        mine, found = image.labels == label, image.detected_labels == label
        ignore = (image.difficult | image.crowd)[mine]
        iou = _iou(image.detected_boxes[found], image.boxes[mine])
        scores.append(image.scores[found])
        if len(ignore):
            best = iou.argmax(axis=1)
            best_iou.append(iou.max(axis=1))
        else:
            best = np.zeros(found.sum(), dtype=np.int64)
            best_iou.append(np.full(found.sum(), -np.inf))
        best_object.append(best + len(ignored))
        ignored.extend(ignore.tolist())
        objects += int((~ignore).sum())

    if not scores:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool), 0
    order = np.argsort(-np.concatenate(scores), kind="stable")
    overlaps = np.concatenate(best_iou)[order] > threshold
    owners = np.concatenate(best_object)[order]
    hits, misses = np.zeros(len(order), dtype=bool), np.zeros(len(order), dtype=bool)
    taken = np.zeros(len(ignored), dtype=bool)
    for row, (overlap, owner) in enumerate(zip(overlaps.tolist(), owners.tolist(), strict=True)):
        if not overlap:
            misses[row] = True
        elif not ignored[owner]:
            hits[row] = not taken[owner]
            misses[row] = taken[owner]
            taken[owner] = True
    return hits, misses, objects


def average_precision_11(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2007's AP: the mean over the recalls 0, .1, ..., 1 of the best precision at that recall or more.

    The recalls are those of the devkit's port, `np.arange(0, 1.1, .1)`, of which the fourth is a hair
    above .3: a recall of exactly 3/10 does not reach it.
    """
    points = np.arange(0.0, 1.1, 0.1)
    return float(sum(precision[recall >= point].max(initial=0.0) for point in points) / 11)


def average_precision_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2010's AP: the area under the precision made monotonous."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([0.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def _iou(detected: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU (D, G) in float64."""
    detected, boxes = detected.astype(np.float64), boxes.astype(np.float64)
    top_left = np.maximum(detected[:, None, :2], boxes[None, :, :2])
    bottom_right = np.minimum(detected[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=2)
    area, other = (np.prod(np.maximum(b[:, 2:] - b[:, :2], 0.0), axis=1) for b in (detected, boxes))
    union = area[:, None] + other[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
