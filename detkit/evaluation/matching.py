"""Which object a detection takes by COCO's rule.

The detections of a class are taken from the best score to the worst, over all images at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import best_first, for_classes, group_by_class
from detkit.system import jit

# COCOeval lowers a threshold of 1 to this.
ALMOST_ONE = 1 - 1e-10
#: What a detection is at a threshold; one on an ignored object, or beyond a limit, is not counted.
MISS, HIT, NOT_COUNTED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Assignment:
    """What the D detections of an EvaluationSet took."""

    object: np.ndarray  # (D,) int64, the object's row in the set, -1 for none
    ignored: np.ndarray  # (D,) bool, took an ignored object: neither hit nor miss
    counted: np.ndarray  # (D,) bool, among the best of its image and class; the others do not count at all
    scores: np.ndarray  # (D,) float64, the set's

    @cached_property
    def hits(self) -> np.ndarray:
        """(D,) bool: true positives."""
        return self.counted & ~self.ignored & (self.object >= 0)

    @cached_property
    def misses(self) -> np.ndarray:
        """(D,) bool: false positives."""
        return self.counted & (self.object < 0)

    @cached_property
    def ranked(self) -> np.ndarray:
        """(N,) int64: the rows of hits and misses, best score first; equal scores keep their order."""
        return best_first(self.scores, self.hits | self.misses)


def assign(
    evaluation_set: EvaluationSet, num_classes: int, iou_threshold: float = 0.5, max_detections: int = 100
) -> Assignment:
    """Give each object to the best detection of its class, by COCO's rule (COCOeval.evaluateImg, areas of all sizes).

    Args:
        num_classes: K; labels beyond 1..K are not counted.
        iou_threshold: least IoU with the object; with a crowd the intersection over the detection's area.
        max_detections: how many detections of an image and class count.
    """
    s, count = evaluation_set, len(evaluation_set.scores)
    result = np.full(count, -1, np.int64), np.zeros(count, bool), np.zeros(count, bool)
    for_classes(
        _assign, group_by_class(s, num_classes), len(s), s.boxes, s.ignored, s.crowd, s.detected_boxes,
        min(float(iou_threshold), ALMOST_ONE), int(max_detections), *result,
    )  # fmt: skip
    return Assignment(*result, s.scores)


@jit
def mark_objects(rows: np.ndarray, images: np.ndarray, first: np.ndarray, count: np.ndarray) -> None:
    """Write where the objects of each image begin in `rows`, and how many there are; `clear` resets `count`."""
    for position in range(len(rows)):
        image = images[rows[position]]
        if count[image] == 0:
            first[image] = position
        count[image] += 1


@jit
def clear(rows: np.ndarray, images: np.ndarray, count: np.ndarray) -> None:
    """Set `count` to zero for the images of `rows`."""
    for row in rows:
        count[images[row]] = 0


@jit
def overlap(detected: np.ndarray, box: np.ndarray, crowd: bool) -> float:
    """IoU of two boxes x, y, width, height; with a crowd, the intersection over the detection's area.

    Operation by operation what pycocotools computes (maskApi.c, bbIou), so that equal means equal to the last bit.
    """
    width = min(detected[2] + detected[0], box[2] + box[0]) - max(detected[0], box[0])
    if width <= 0:
        return 0.0
    height = min(detected[3] + detected[1], box[3] + box[1]) - max(detected[1], box[1])
    if height <= 0:
        return 0.0
    shared = width * height
    area = detected[2] * detected[3]
    return shared / (area if crowd else area + box[2] * box[3] - shared)


@jit
def find_candidates(detected, boxes, crowd, rows, start, count, least, candidates, overlaps):
    """Find the objects of an image that a detection overlaps by `least` or more.

    The image's objects are rows[start : start + count]. Writes their positions in `rows` and their overlaps; returns
    how many they are.
    """
    found = 0
    for position in range(start, start + count):
        row = rows[position]
        shared = overlap(detected, boxes[row], crowd[row])
        if shared >= least:
            candidates[found] = position
            overlaps[found] = shared
            found += 1
    return found


@jit
def choose(candidates, overlaps, found, least, taken, ignored, crowd):
    """The position of the object that a detection takes, or -1 (COCOeval.evaluateImg); of equal overlaps the last one.

    The first `found` of candidates and overlaps are objects of the detection's image and class. By position: taken by
    a better detection, which only crowds can be again; ignored, chosen only where no other will do; crowd.
    """
    for wanted in (False, True):
        best, chosen = least, -1
        for i in range(found):
            position = candidates[i]
            if ignored[position] == wanted and overlaps[i] >= best and (crowd[position] or not taken[position]):
                best, chosen = overlaps[i], position
        if chosen >= 0:
            return chosen
    return -1


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


@jit
def _assign(
    classes, detections, detection_starts, detection_images, objects, object_starts, object_images, num_images,
    boxes, ignored, crowd, detected_boxes, threshold, limit,
    taken_object, on_ignored, counted,
):  # fmt: skip
    """Write the fields of an Assignment for the detections of some classes, which count from 0."""
    first = np.zeros(num_images, np.int32)
    count = np.zeros(num_images, np.int32)
    seen = np.zeros(num_images, np.int32)
    for k in classes:
        mine = objects[object_starts[k] : object_starts[k + 1]]
        found = detections[detection_starts[k] : detection_starts[k + 1]]
        mark_objects(mine, object_images, first, count)
        my_ignored, my_crowd = ignored[mine], crowd[mine]
        taken = np.zeros(len(mine), np.bool_)
        candidates = np.zeros(len(mine), np.int64)
        overlaps = np.zeros(len(mine))
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
