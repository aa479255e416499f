"""What became of each detection at one IoU threshold: what curves, error analysis and pictures are drawn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detkit.system import jit

from .evaluation_set import EvaluationSet
from .grouping import for_classes, group_by_class
from .matching import ALMOST_ONE, choose, clear, find_candidates, mark_objects


class Assignment(NamedTuple):
    """What the D detections of an EvaluationSet took.

    Attributes:
        object: (D,) int64, the object's row in the set, -1 for none.
        ignored: (D,) bool, took an ignored object: neither hit nor miss.
        counted: (D,) bool, among the best of its image and class; the others do not count at all.
    """

    object: np.ndarray
    ignored: np.ndarray
    counted: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        """(D,) bool: true positives."""
        return self.counted & ~self.ignored & (self.object >= 0)

    @property
    def misses(self) -> np.ndarray:
        """(D,) bool: false positives."""
        return self.counted & (self.object < 0)


def assign(
    evaluation_set: EvaluationSet, num_classes: int, iou_threshold: float = 0.5, max_detections: int = 100
) -> Assignment:
    """Gives each object to the best detection of its class, by COCO's rule (COCOeval.evaluateImg, areas of all sizes).

    Args:
        evaluation_set: objects and detections.
        num_classes: K; labels beyond 1..K are not counted.
        iou_threshold: least IoU with the object; with a crowd the intersection over the detection's area.
        max_detections: how many detections of an image and class count.
    """
    grouped = group_by_class(evaluation_set, num_classes)
    count = len(evaluation_set.scores)
    result = Assignment(np.full(count, -1, np.int64), np.zeros(count, bool), np.zeros(count, bool))
    s = evaluation_set

    def work(classes: np.ndarray) -> None:
        _assign(
            classes, *grouped, len(s), s.boxes, s.ignored, s.crowd, s.detected_boxes,
            min(float(iou_threshold), ALMOST_ONE), int(max_detections), *result,
        )  # fmt: skip

    for_classes(work, grouped)
    return result


@jit
def _assign(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images, num_images,
    boxes, ignored, crowd, detected_boxes, threshold, limit,
    taken_object, on_ignored, counted,
):  # fmt: skip
    first, count = np.zeros(num_images, np.int32), np.zeros(num_images, np.int32)
    seen = np.zeros(num_images, np.int32)
    for k in classes:
        mine = objects[object_starts[k] : object_starts[k + 1]]
        found = detections[detection_starts[k] : detection_starts[k + 1]]
        mark_objects(mine, object_images, first, count)
        my_ignored, my_crowd = np.zeros(len(mine), np.bool_), np.zeros(len(mine), np.bool_)
        for position in range(len(mine)):
            my_ignored[position], my_crowd[position] = ignored[mine[position]], crowd[mine[position]]
        taken = np.zeros(len(mine), np.bool_)
        candidates, overlaps = np.zeros(len(mine), np.int64), np.zeros(len(mine))
        for row in found:
            image = detection_images[row]
            seen[image] += 1
            if seen[image] > limit:
                continue
            counted[row] = True
            near = find_candidates(
                detected_boxes[row], boxes, crowd, mine, first[image], count[image], threshold, candidates, overlaps
            )
            chosen = choose(candidates, overlaps, near, threshold, taken, my_ignored, my_crowd)
            if chosen >= 0:
                taken[chosen] = True
                taken_object[row] = mine[chosen]
                on_ignored[row] = my_ignored[chosen]
        clear(mine, object_images, count)
        clear(found, detection_images, seen)
