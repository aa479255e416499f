"""The VOC protocols: the average precision of the development kits of 2007 and of 2010.

After the devkit's Python port in py-faster-rcnn (lib/datasets/voc_eval.py, papers.md 2.3): a detection belongs to the
object of its class it overlaps most; it is a hit if that IoU is above the threshold and the object is not taken yet.
Difficult objects are neither hits nor misses, however often they are found. Boxes are half-open here, which makes the
devkit's inclusive "+1" arithmetic the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.evaluation.coco import interpolate
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import for_classes, group_by_class
from detkit.evaluation.matching import clear, mark_objects, overlap
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
    s, thresholds = evaluation_set, np.array(iou_thresholds, np.float64)
    result = np.full((len(thresholds), num_classes), np.nan)
    for_classes(
        _evaluate, group_by_class(s, num_classes), len(s), s.boxes, s.ignored, s.detected_boxes,
        thresholds, ELEVEN_POINTS if eleven_points else ELEVEN_POINTS[:0], strict, result,
    )  # fmt: skip
    return result


@jit
def _evaluate(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images, num_images,
    boxes, ignored, detected_boxes,
    thresholds, points, strict, result,
):  # fmt: skip
    """Write the (T, K) AP of some classes, which count from 0; without `points` of recall, the area under the curve."""
    first = np.zeros(num_images, np.int32)
    count = np.zeros(num_images, np.int32)
    for k in classes:
        mine = objects[object_starts[k] : object_starts[k + 1]]
        found = detections[detection_starts[k] : detection_starts[k + 1]]
        mark_objects(mine, object_images, first, count)
        wanted = len(mine) - ignored[mine].sum()
        num_thresholds = len(thresholds)
        taken = np.zeros((num_thresholds, len(mine)), np.bool_)
        at_hit = np.zeros((num_thresholds, len(mine)))  # precision up to each hit
        hits = np.zeros(num_thresholds, np.int64)
        counted = np.zeros(num_thresholds, np.int64)
        for row in found:
            image = detection_images[row]
            most, owner = -1.0, -1
            for position in range(first[image], first[image] + count[image]):
                shared = overlap(detected_boxes[row], boxes[mine[position]], False)
                if shared > most:  # of equal ones the first
                    most, owner = shared, position
            for t in range(num_thresholds):
                is_hit = most > thresholds[t] or (most == thresholds[t] and most > 0 and not strict)
                if is_hit and ignored[mine[owner]]:
                    continue
                counted[t] += 1
                if is_hit and not taken[t, owner]:
                    taken[t, owner] = True
                    hits[t] += 1
                    at_hit[t, hits[t] - 1] = hits[t] / counted[t]
        if wanted > 0:
            for t in range(num_thresholds):
                result[t, k] = _average(at_hit[t], hits[t], wanted, points)
        clear(mine, object_images, count)


@jit
def _average(at_hit, num_hits, num_objects, points):
    """The mean of the best precision at each point of recall or beyond; without points the area. Changes `at_hit`."""
    best = np.zeros(len(points))
    interpolate(at_hit, num_hits, num_objects, points, best)
    if len(points):
        return best.sum() / len(points)
    area = 0.0
    for j in range(num_hits):
        area += ((j + 1) / num_objects - j / num_objects) * at_hit[j]
    return area
