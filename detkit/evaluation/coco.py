"""The COCO protocol: COCOeval's numbers, equal to the last bit (cocoapi, PythonAPI/pycocotools/cocoeval.py).

Unlike in COCOeval, an object may be `difficult`: it is then treated as one outside the range of areas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import for_classes, group_by_class
from detkit.evaluation.matching import ALMOST_ONE, choose, clear, find_candidates, mark_objects
from detkit.system import jit

#: COCO's own settings (COCOeval.Params.setDetParams).
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, round((0.95 - 0.5) / 0.05) + 1).tolist())
RECALL_THRESHOLDS = tuple(np.linspace(0.0, 1.0, round((1.0 - 0.0) / 0.01) + 1).tolist())
MAX_DETECTIONS = (1, 10, 100)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


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
    recalls = np.array(recall_thresholds, np.float64)
    limits = np.array(max_detections, np.int64)
    areas = np.array(list(area_ranges.values()), np.float64).reshape(-1, 2)
    precision = np.full((num_classes, len(areas), len(ious), len(recalls)), np.nan)
    recall = np.full((num_classes, len(areas), len(ious), len(limits)), np.nan)
    over_limit = np.zeros(num_classes, np.int64)
    for_classes(
        _evaluate, group_by_class(s, num_classes), len(s), s.boxes, s.ignored, s.crowd, s.area, s.detected_boxes,
        ious, recalls, limits, areas, precision, recall, over_limit,
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


@jit
def _evaluate(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images, num_images,
    boxes, ignored, crowd, area, detected_boxes,
    ious, recalls, limits, areas, precision, recall, over_limit,
):  # fmt: skip
    """Write (K, A, T, R) precision, (K, A, T, M) recall and (K,) over_limit of some classes, which count from 0.

    The settings ious (T,), recalls (R,), limits (M,) and areas (A, 2) are all ascending.
    """
    num_ious, num_areas, num_limits = len(ious), len(areas), len(limits)
    least = ious.min()
    most = limits[num_limits - 1]
    first = np.zeros(num_images, np.int32)
    count = np.zeros(num_images, np.int32)
    seen = np.zeros(num_images, np.int32)
    eps = np.spacing(1.0)
    for k in classes:
        mine = objects[object_starts[k] : object_starts[k + 1]]
        found = detections[detection_starts[k] : detection_starts[k + 1]]
        size = len(mine)
        mark_objects(mine, object_images, first, count)
        my_crowd = crowd[mine]
        ignore = np.zeros((num_areas, size), np.bool_)
        wanted = np.zeros(num_areas, np.int64)
        for i, row in enumerate(mine):
            for a in range(num_areas):
                ignore[a, i] = ignored[row] or area[row] < areas[a, 0] or area[row] > areas[a, 1]
                wanted[a] += not ignore[a, i]
        taken = np.zeros((num_areas, num_ious, size), np.bool_)
        hits = np.zeros((num_areas, num_ious, num_limits), np.int64)
        # Of each hit: the precision of all detections up to it.
        at_hit = np.zeros((num_areas, num_ious, size))
        counted = np.zeros((num_areas, num_ious), np.int64)  # hits and misses so far, of those that overlap an object
        lone = np.zeros(num_areas, np.int64)  # misses so far of those that overlap none, the same at every threshold
        candidates = np.zeros(size, np.int64)
        overlaps = np.zeros(size)
        for row in found:
            image = detection_images[row]
            rank = seen[image]  # among the detections of its image and class
            seen[image] += 1
            if rank >= most:
                over_limit[k] += 1
                continue
            box = detected_boxes[row]
            near = find_candidates(box, boxes, crowd, mine, first[image], count[image], least, candidates, overlaps)
            best = overlaps[:near].max() if near else 0.0
            box_area = box[2] * box[3]
            for a in range(num_areas):
                inside = areas[a, 0] <= box_area <= areas[a, 1]
                if near == 0:
                    lone[a] += inside
                    continue
                for t in range(num_ious):
                    chosen = -1
                    if best >= ious[t]:
                        chosen = choose(candidates, overlaps, near, ious[t], taken[a, t], ignore[a], my_crowd)
                    if chosen < 0:
                        counted[a, t] += inside
                        continue
                    taken[a, t, chosen] = True
                    if not ignore[a, chosen]:
                        counted[a, t] += 1
                        number = hits[a, t, num_limits - 1]
                        at_hit[a, t, number] = (number + 1) / (counted[a, t] + lone[a] + eps)
                        for m in range(num_limits):
                            hits[a, t, m] += rank < limits[m]
        for a in range(num_areas):
            if wanted[a] == 0:
                continue
            for t in range(num_ious):
                interpolate(at_hit[a, t], hits[a, t, num_limits - 1], wanted[a], recalls, precision[k, a, t])
                for m in range(num_limits):
                    recall[k, a, t, m] = hits[a, t, m] / wanted[a]
        clear(mine, object_images, count)
        clear(found, detection_images, seen)


@jit
def interpolate(at_hit, num_hits, num_objects, recalls, result):
    """Write the best precision at each recall or beyond, 0 where it is not reached.

    Of at_hit (N,), the precision at each hit, the first `num_hits` count; each becomes the best of itself and later
    ones.
    """
    for j in range(num_hits - 2, -1, -1):
        at_hit[j] = max(at_hit[j], at_hit[j + 1])
    j = 0
    for r in range(len(recalls)):
        j = max(j, int(recalls[r] * num_objects) - 2)  # before the hit that is looked for, whatever the rounding
        while j < num_hits and (j + 1) / num_objects < recalls[r]:
            j += 1
        result[r] = at_hit[j] if j < num_hits else 0.0
