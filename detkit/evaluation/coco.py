"""The COCO protocol: COCOeval's numbers, equal to the last bit (cocoapi, PythonAPI/pycocotools/cocoeval.py).

Unlike in COCOeval, an object may be `difficult`: it is then treated as one outside the range of areas.

This is NumPy, since importing numba and its compiled code takes longer than the evaluation. Most detections overlap no
object of their class, and are only counted. The others are matched in rounds: the best one of every image and class,
then the second one of every image and class, and so on, for all IoU thresholds and ranges of areas at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet, offsets_of, ranges
from detkit.evaluation.grouping import Grouped, for_classes, group_by_class, stable_order
from detkit.evaluation.matching import ALMOST_ONE, HIT, MISS, NOT_COUNTED, interpolate

#: COCO's own settings (COCOeval.Params.setDetParams).
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, round((0.95 - 0.5) / 0.05) + 1).tolist())
RECALL_THRESHOLDS = tuple(np.linspace(0.0, 1.0, round((1.0 - 0.0) / 0.01) + 1).tolist())
MAX_DETECTIONS = (1, 10, 100)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
#: Pairs of a detection and an object that are compared at once, which takes about 100 MB.
PAIRS_AT_ONCE = 2**19


class Curves(NamedTuple):
    """Precision and recall of K classes, T IoU thresholds and A ranges of areas; NaN where there is nothing to find."""

    precision: np.ndarray  # (T, R, K, A) at each recall threshold, of the largest number of detections
    recall: np.ndarray  # (T, K, A, M) at each number of detections
    over_limit: int  # detections beyond the largest number, which were not counted


def evaluate(
    evaluation_set: EvaluationSet,
    num_classes: int,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    recall_thresholds: Sequence[float] = RECALL_THRESHOLDS,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
) -> Curves:
    """Precision and recall of the classes 1..num_classes.

    Args:
        num_classes: K; labels beyond are not counted.
        iou_thresholds: T, least IoU of a hit.
        recall_thresholds: R, ascending, in 0..1.
        max_detections: M, ascending, numbers of detections of an image and class.
        area_ranges: A, least and largest area of what counts, both included, in square pixels.
    """
    s = evaluation_set
    ious = np.minimum(np.array(iou_thresholds, np.float64), ALMOST_ONE)
    areas = np.array(list(area_ranges.values()), np.float64).reshape(-1, 2)
    ignore = s.ignored[:, None] | (s.area[:, None] < areas[:, 0]) | (s.area[:, None] > areas[:, 1])
    precision = np.full((num_classes, len(areas), len(ious), len(recall_thresholds)), np.nan)
    recall = np.full((num_classes, len(areas), len(ious), len(max_detections)), np.nan)
    over_limit = np.zeros(num_classes, np.int64)
    for_classes(
        _evaluate, group_by_class(s, num_classes), s, ious, np.array(recall_thresholds, np.float64),
        max_detections, areas, ignore, precision, recall, over_limit,
    )  # fmt: skip
    return Curves(precision.transpose(2, 3, 0, 1), recall.transpose(2, 0, 1, 3), int(over_limit.sum()))


def average_precision(hits: np.ndarray, num_objects: int) -> float:
    """The AP of one class at one IoU threshold, over COCO's 101 recalls.

    Args:
        hits: (N,) bool, hit or miss of the detections that count, best first.
        num_objects: how many there are to find; NaN is returned for none.
    """
    if not num_objects:
        return float("nan")
    reached = np.flatnonzero(hits)
    precision = np.arange(1, len(reached) + 1) / (reached + 1 + np.spacing(1))
    interpolated = np.zeros(len(RECALL_THRESHOLDS))
    interpolate(precision, len(precision), num_objects, np.array(RECALL_THRESHOLDS), interpolated)
    return float(interpolated.mean())


def _evaluate(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images,
    s, ious, recalls, limits, areas, ignore, precision, recall, over_limit,
):  # fmt: skip
    """Write (K, A, T, R) precision, (K, A, T, M) recall and (K,) over_limit of some classes, which count from 0.

    The settings ious (T,), recalls (R,), limits (M,) and areas (A, 2) are those of `evaluate`; `ignore` is (G, A).
    """
    # Of these classes only, which now count from 0 to C.
    counts, object_counts = np.diff(detection_starts)[classes], np.diff(object_starts)[classes]
    part = Grouped(
        detections[ranges(detection_starts[classes], counts)],
        offsets_of(counts),
        detection_images,
        objects[ranges(object_starts[classes], object_counts)],
        offsets_of(object_counts),
        object_images,
    )
    count, starts = len(classes), part.detection_starts
    ranks, near = _find_near(s, part, ious.min(), limits[-1])
    kinds = _match(near, ious, ignore, s.crowd)
    near_starts = np.searchsorted(near.positions, starts)  # of each class
    alone = ranks < limits[-1]
    over_limit[classes] = counts - np.diff(offsets_of(alone)[starts])
    alone[near.positions] = False
    box_areas = (s.detected_boxes[:, 2] * s.detected_boxes[:, 3])[part.detections]
    for a, (least, most) in enumerate(areas):
        inside = (box_areas >= least) & (box_areas <= most)
        misses = offsets_of(alone & inside)  # of a class: those that overlap nothing, the same at every threshold
        misses = misses[near.positions] - np.repeat(misses[starts[:-1]], np.diff(near_starts))
        inside = inside[near.positions]
        kept = offsets_of(~ignore[part.objects, a])
        wanted = kept[part.object_starts[1:]] - kept[part.object_starts[:-1]]
        needed = _needed_hits(wanted, recalls)
        known = wanted > 0
        for t in range(len(ious)):
            hits = kinds[a, t] == HIT
            counted = hits | ((kinds[a, t] == MISS) & inside)
            hits, at_hit, hit_starts = _precision_at_hits(hits, counted, misses, near_starts)
            found = np.diff(hit_starts)
            reached = needed <= found[:, None]
            values = np.zeros(needed.shape)
            values[reached] = at_hit[(hit_starts[:-1, None] + needed - 1)[reached]]
            precision[classes[known], a, t] = values[known]
            labels, rank = np.repeat(np.arange(count), found), ranks[near.positions[hits]]
            for m, limit in enumerate(limits):
                number = np.bincount(labels[rank < limit], minlength=count)
                recall[classes[known], a, t, m] = number[known] / wanted[known]


class _Near(NamedTuple):
    """N detections that overlap P objects of their image and class, in the order of classes and scores.

    Detection i overlaps the objects of the pairs first[i]:last[i], the most overlapped one first; of equal ones the
    last one first, as COCOeval prefers it.
    """

    positions: np.ndarray  # (N,) int64, where in Grouped.detections; ascending
    rounds: np.ndarray  # (N,) int64, how many better ones of the same image and class there are
    first: np.ndarray  # (N,) int64
    last: np.ndarray  # (N,) int64
    objects: np.ndarray  # (P,) int64, rows
    overlaps: np.ndarray  # (P,) float64


def _find_near(s: EvaluationSet, grouped: Grouped, least: float, limit: int) -> tuple[np.ndarray, _Near]:
    """The rank (D,) of each of Grouped.detections in its image and class, and those with an overlap of `least` or more.

    Only the `limit` best of an image and class are compared with objects.
    """
    images = grouped.detection_images[grouped.detections]
    by_image = stable_order(images, len(s))  # by image, then by class, then by score
    keys = _keys(images, grouped.detection_starts)[by_image]
    groups, sizes = _runs(keys)
    ranks = np.empty(len(keys), np.int64)
    ranks[by_image] = ranges(np.zeros_like(sizes), sizes)

    object_keys = _keys(grouped.object_images[grouped.objects], grouped.object_starts)
    order = np.argsort(object_keys, kind="stable")
    objects, object_keys = grouped.objects[order], object_keys[order]
    first, counts = _runs(object_keys)
    # Images and classes that have both detections and objects.
    _, group, own = np.intersect1d(keys[groups], object_keys[first], assume_unique=True, return_indices=True)
    sizes = np.minimum(sizes[group], limit)
    positions = by_image[ranges(groups[group], sizes)]
    group, first, counts = (np.repeat(values, sizes) for values in (group, first[own], counts[own]))

    # Each detection with each object, in parts.
    pairs: list[tuple[np.ndarray, ...]] = []
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, counts.sum(), PAIRS_AT_ONCE))
    for part in np.split(np.arange(len(counts)), cuts):
        detection = np.repeat(part, counts[part])
        rows = objects[ranges(first[part], counts[part])]
        overlaps = _overlaps(s.detected_boxes[grouped.detections[positions[detection]]], s.boxes[rows], s.crowd[rows])
        kept = np.flatnonzero(overlaps >= least)
        pairs.append((detection[kept], rows[kept], overlaps[kept]))
    detection, rows, overlaps = (np.concatenate(values) for values in zip(*pairs, strict=True))
    counts = np.bincount(detection, minlength=len(positions))
    several = np.flatnonzero(counts[detection] > 1)
    order = several[np.lexsort((-rows[several], -overlaps[several], detection[several]))]
    rows[several], overlaps[several] = rows[order], overlaps[order]

    near, last = np.flatnonzero(counts), np.cumsum(counts)
    _, sizes = _runs(group[near])
    rounds = ranges(np.zeros_like(sizes), sizes)
    order = np.argsort(positions[near])
    near = near[order]
    return ranks, _Near(positions[near], rounds[order], (last - counts)[near], last[near], rows, overlaps)


def _keys(images: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A number (N,) int64 of each image and class, by image, then by class; class k has the rows from starts[k] on."""
    num_classes = len(starts) - 1
    return images.astype(np.int64) * num_classes + np.repeat(np.arange(num_classes), np.diff(starts))


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin, and how long they are."""
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return begins, np.diff(begins, append=len(values))


def _overlaps(detected: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """`matching.overlap` of each of N pairs of boxes, operation by operation."""
    (x, y, width, height), (left, top, across, down) = detected.T, boxes.T
    shared_width = np.minimum(width + x, across + left) - np.maximum(x, left)
    shared_height = np.minimum(height + y, down + top) - np.maximum(y, top)
    shared, area = shared_width * shared_height, width * height
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = shared / np.where(crowd, area, area + across * down - shared)
    return np.where((shared_width > 0) & (shared_height > 0), ratio, 0.0)


def _match(near: _Near, ious: np.ndarray, ignore: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """What each of the N detections is, (A, T, N) int8: MISS, HIT or NOT_COUNTED; COCOeval.evaluateImg.

    `ignore` is (G, A), whether an object is ignored in a range of areas.
    """
    num_areas, num_ious = ignore.shape[1], len(ious)
    # Areas and thresholds are one dimension here, of A * T.
    outcome = np.repeat(np.where(ignore, NOT_COUNTED, HIT).astype(np.int8), num_ious, axis=1)
    ious = np.tile(ious, num_areas)
    free = np.ones(outcome.shape, bool)
    kinds = np.full((len(near.positions), len(ious)), MISS, np.int8)

    def take(rows: np.ndarray, pairs: np.ndarray, wanted: int | None = None) -> None:
        """Let detections, each of another image or class, take the objects of these pairs where they can."""
        objects = near.objects[pairs]
        able = free[objects] & (near.overlaps[pairs, None] >= ious)
        if wanted is not None:
            able &= (kinds[rows] == MISS) & (outcome[objects] == wanted)
        kinds[rows] += able * outcome[objects]
        free[objects] &= ~able | crowd[objects, None]  # a crowd can be taken again

    order = np.argsort(near.rounds, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(near.rounds))[:-1]) if len(order) else ():
        single = near.last[rows] - near.first[rows] == 1
        take(rows[single], near.first[rows[single]])
        for wanted in (HIT, NOT_COUNTED):  # an ignored object only where no other will do
            left = rows[~single]
            pairs = near.first[left]
            while len(left):
                take(left, pairs, wanted)
                more = pairs + 1 < near.last[left]
                left, pairs = left[more], pairs[more] + 1
    return np.ascontiguousarray(kinds.T).reshape(num_areas, num_ious, -1)


def _precision_at_hits(
    hits: np.ndarray, counted: np.ndarray, misses: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best precision at each of H hits or beyond, class by class.

    Args:
        hits, counted: (N,) bool, of detections that overlap an object; those of class k are starts[k]:starts[k + 1].
        misses: (N,) int64, how many better ones of the class overlap none.

    Returns:
        The rows of the hits (H,), the precision (H,), and where each class begins (K + 1,).
    """
    rows = np.flatnonzero(hits)
    hit_starts = np.searchsorted(rows, starts)
    found = np.diff(hit_starts)
    number = ranges(np.ones_like(found), found)
    so_far = offsets_of(counted)
    total = so_far[rows + 1] - np.repeat(so_far[starts[:-1]], found) + misses[rows]
    precision = number / (total + np.spacing(1.0))
    for begin, end in pairwise(hit_starts.tolist()):
        backwards = precision[begin:end][::-1]
        np.maximum.accumulate(backwards, out=backwards)
    return rows, precision, hit_starts


def _needed_hits(wanted: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """(K, R) int64: the first hit that reaches each recall, from 1 on, where `wanted` (K,) objects are to find."""
    wanted = np.maximum(wanted, 1)[:, None]
    needed = np.maximum((recalls * wanted).astype(np.int64) - 1, 1)  # one below, whatever the rounding
    while (short := needed / wanted < recalls).any():
        needed += short
    return needed
