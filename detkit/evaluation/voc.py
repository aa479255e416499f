"""The VOC protocols: the average precision of the development kits of 2007 and of 2010.

After the devkit's Python port in py-faster-rcnn (lib/datasets/voc_eval.py, papers.md 2.3): a detection belongs to the
object of its class it overlaps most; it is a hit if that IoU is above the threshold and the object is not taken yet.
Difficult objects are neither hits nor misses, however often they are found. Boxes are half-open here, which makes the
devkit's inclusive "+1" arithmetic the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import count_by_class, for_classes, group_by_class
from detkit.evaluation.matching import HIT, MISS, NOT_COUNTED, clear, interpolate, mark_objects, overlap
from detkit.system import jit

#: VOC2007's recalls as the devkit's port has them: the fourth is slightly above 0.3; 3 of 10 objects do not reach it.
ELEVEN_POINTS = np.arange(0.0, 1.1, 0.1)


def evaluate(
    evaluation_set: EvaluationSet,
    num_classes: int,
    iou_thresholds: Sequence[float] = (0.5,),
    eleven_points: bool = False,
    strict: bool = True,
) -> np.ndarray:
    """The AP at each threshold of each of the classes 1..num_classes, (T, K); NaN for a class without objects to find.

    Args:
        evaluation_set: objects and detections. Crowds, which VOC has not, count as difficult.
        num_classes: K; labels beyond are not counted.
        iou_thresholds: T.
        eleven_points: VOC2007's mean of eleven precisions, else VOC2010's area under the curve.
        strict: a hit's IoU is above the threshold, as in the Python port (voc_eval.py:181); otherwise it may be equal,
            as in the MATLAB devkit (VOCevaldet.m).
    """
    kinds = match(evaluation_set, num_classes, iou_thresholds, strict)
    grouped = group_by_class(evaluation_set, num_classes)
    objects = count_by_class(evaluation_set.labels[evaluation_set.to_find(num_classes)], num_classes)
    result = np.full((len(kinds), num_classes), np.nan)
    points = ELEVEN_POINTS if eleven_points else ELEVEN_POINTS[:0]
    _evaluate(grouped.detections, grouped.detection_starts, kinds, objects, points, result)
    return result


def match(
    evaluation_set: EvaluationSet, num_classes: int, iou_thresholds: Sequence[float] = (0.5,), strict: bool = True
) -> np.ndarray:
    """What each detection is at each threshold, (T, D) int8: MISS, HIT or NOT_COUNTED; arguments as of `evaluate`."""
    s, thresholds = evaluation_set, np.array(iou_thresholds, np.float64)
    kinds = np.full((len(thresholds), len(s.scores)), NOT_COUNTED, np.int8)
    for_classes(
        _match, group_by_class(s, num_classes), len(s), s.boxes, s.ignored, s.detected_boxes, thresholds, strict, kinds
    )
    return kinds


@jit
def _match(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images, num_images,
    boxes, ignored, detected_boxes, thresholds, strict, kinds,
):  # fmt: skip
    """Write (T, D) `kinds` of the detections of some classes, which count from 0."""
    first = np.zeros(num_images, np.int32)
    count = np.zeros(num_images, np.int32)
    for k in classes:
        mine = objects[object_starts[k] : object_starts[k + 1]]
        mark_objects(mine, object_images, first, count)
        taken = np.zeros((len(thresholds), len(mine)), np.bool_)
        for row in detections[detection_starts[k] : detection_starts[k + 1]]:
            image = detection_images[row]
            most, owner = -1.0, -1
            for position in range(first[image], first[image] + count[image]):
                shared = overlap(detected_boxes[row], boxes[mine[position]], False)
                if shared > most:  # of equal ones the first
                    most, owner = shared, position
            for t in range(len(thresholds)):
                kinds[t, row] = MISS
                if not (most > thresholds[t] or (most == thresholds[t] and most > 0 and not strict)):
                    continue
                if ignored[mine[owner]]:
                    kinds[t, row] = NOT_COUNTED
                elif not taken[t, owner]:
                    taken[t, owner] = True
                    kinds[t, row] = HIT
        clear(mine, object_images, count)


@jit
def _evaluate(detections, starts, kinds, objects, points, result):
    """Write the (T, K) AP; without `points` of recall, the area under the curve."""
    for k in range(len(objects)):
        if objects[k] == 0:
            continue
        at_hit = np.zeros(objects[k])  # precision up to each hit
        for t in range(len(kinds)):
            hits, counted = 0, 0
            for row in detections[starts[k] : starts[k + 1]]:
                if kinds[t, row] == NOT_COUNTED:
                    continue
                counted += 1
                if kinds[t, row] == HIT:
                    at_hit[hits] = (hits + 1) / counted
                    hits += 1
            result[t, k] = average(at_hit, hits, objects[k], points)


@jit
def average(at_hit, num_hits, num_objects, points):
    """The mean of the best precision at each point of recall or beyond; without points the area. Changes `at_hit`."""
    best = np.zeros(len(points))
    interpolate(at_hit, num_hits, num_objects, points, best)
    if len(points):
        return best.sum() / len(points)
    area = 0.0
    for j in range(num_hits):
        area += ((j + 1) / num_objects - j / num_objects) * at_hit[j]
    return area
