"""How well proposals cover the objects: recall against number of boxes and IoU, and average best overlap.

An object counts as found at an IoU if any of the first n proposals of its image overlaps it by that much; two objects
may share a proposal. So recall is after Uijlings et al. (IJCV 2013, section 5), whose measures ABO and MABO are here
too, and average recall after Hosang et al. (PAMI 2016, section 4): the mean over the IoUs 0.5, 0.55, ..., 0.95.
COCOeval and Detectron2 let a proposal find one object only, which can give less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from detkit.errors import ConfigError
from detkit.evaluation.coco import IOU_THRESHOLDS
from detkit.evaluation.grouping import count_by_class
from detkit.evaluation.matching import overlap
from detkit.system import jit

#: 300 is Faster R-CNN's number of proposals, 2000 about that of selective search.
COUNTS = (10, 20, 50, 100, 200, 300, 500, 1000, 2000)


class Recall(NamedTuple):
    """Recall of G objects at C numbers of proposals and T IoU thresholds; NaN without objects."""

    recall: np.ndarray  # (T, C) float64, share of the objects that a proposal overlaps by the IoU or more
    average_recall: np.ndarray  # (C,) its mean over the thresholds: AR if they are 0.5, 0.55, ..., 0.95
    recall_50: np.ndarray  # (C,) at the IoU 0.5, whatever the thresholds are
    recall_70: np.ndarray  # (C,) likewise at 0.7
    abo: np.ndarray  # (K, C) average best overlap: the mean over a class's objects of the best IoU; NaN without any
    mabo: np.ndarray  # (C,) mean over the classes that have objects


def proposal_recall(
    boxes: np.ndarray,
    labels: np.ndarray,
    object_offsets: np.ndarray,
    proposals: np.ndarray,
    proposal_offsets: np.ndarray,
    num_classes: int,
    counts: Sequence[int] = COUNTS,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    ignored: np.ndarray | None = None,
) -> Recall:
    """Recall over I images, given as flat arrays as in an EvaluationSet.

    Args:
        boxes: (G, 4) float64 objects, x, y, width, height.
        labels: (G,) int32, 1..K.
        object_offsets: (I + 1,) int64; image i has the objects object_offsets[i]:object_offsets[i + 1].
        proposals: (P, 4) float64 likewise, the best of an image first.
        proposal_offsets: (I + 1,) int64 likewise.
        num_classes: K; objects with other labels do not count.
        counts: C, ascending: how many proposals of an image are looked at.
        iou_thresholds: T, in 0..1 without 0.
        ignored: (G,) bool, objects that need not be found: difficult and crowd.

    Raises:
        ConfigError: for counts or thresholds that are none.
    """
    check_settings(counts, iou_thresholds)
    wanted = (labels >= 1) & (labels <= num_classes)
    if ignored is not None:
        wanted &= ~ignored
    best = best_overlaps(boxes, object_offsets, proposals, proposal_offsets, counts)
    return summarise(best[wanted], labels[wanted], num_classes, iou_thresholds)


def check_settings(counts: Sequence[int], iou_thresholds: Sequence[float]) -> None:
    """Raises ConfigError unless counts ascend from 1 or more, and thresholds are above 0 and up to 1."""
    if not len(counts) or counts[0] < 1 or any(b <= a for a, b in pairwise(counts)):
        raise ConfigError(f"numbers of proposals {list(counts)}: give one or more, ascending, from 1 on")
    if not len(iou_thresholds) or not all(0 < threshold <= 1 for threshold in iou_thresholds):
        raise ConfigError(f"IoU thresholds {list(iou_thresholds)}: give one or more, above 0 and up to 1")


def best_overlaps(
    boxes: np.ndarray,
    object_offsets: np.ndarray,
    proposals: np.ndarray,
    proposal_offsets: np.ndarray,
    counts: Sequence[int],
) -> np.ndarray:
    """(G, C) float64: the best IoU of each object with the first `counts` proposals of its image, 0 without any."""
    return _best_overlaps(boxes, object_offsets, proposals, proposal_offsets, np.array(counts, np.int64))


def summarise(best: np.ndarray, labels: np.ndarray, num_classes: int, iou_thresholds: Sequence[float]) -> Recall:
    """The numbers, from what `best_overlaps` gave for the objects that count: `best` (G, C) and labels (G,) in 1..K."""
    objects = count_by_class(labels, num_classes)
    total = np.stack([np.bincount(labels, column, minlength=num_classes + 1)[1:] for column in best.T], axis=1)
    abo = total / np.where(objects > 0, objects, np.nan)[:, None]

    def recall_at(threshold: float) -> np.ndarray:
        return (best >= threshold).mean(axis=0) if len(best) else np.full(best.shape[1], np.nan)

    recall = np.stack([recall_at(threshold) for threshold in iou_thresholds])
    present = abo[objects > 0]
    mabo = present.mean(axis=0) if len(present) else np.full(best.shape[1], np.nan)
    return Recall(recall, recall.mean(axis=0), recall_at(0.5), recall_at(0.7), abo, mabo)


@jit
def _best_overlaps(boxes, object_offsets, proposals, proposal_offsets, counts):
    result = np.zeros((len(boxes), len(counts)))
    for image in range(len(object_offsets) - 1):
        first, end = proposal_offsets[image], proposal_offsets[image + 1]
        for row in range(object_offsets[image], object_offsets[image + 1]):
            best, start = 0.0, first
            for c in range(len(counts)):
                stop = min(first + counts[c], end)
                for p in range(start, stop):
                    best = max(best, overlap(proposals[p], boxes[row], False))
                result[row, c] = best
                start = stop
    return result
