"""Which object a detection takes: COCO's rule, compiled.

The detections of a class are walked from the best score to the worst, over all images at once: what an image's
detections take depends on their own order only, and accumulating precision needs the order over all.
"""

from __future__ import annotations

import numpy as np

from detkit.system import jit

# COCOeval takes thresholds of 1 as a hair less.
ALMOST_ONE = 1 - 1e-10


@jit
def mark_objects(rows: np.ndarray, images: np.ndarray, first: np.ndarray, count: np.ndarray) -> None:
    """Notes for each image where its objects lie in `rows`, which are in the order of the images.

    first, count (I,) int32: written for images with objects; `clear` makes `count` zero again.
    """
    for position in range(len(rows)):
        image = images[rows[position]]
        if count[image] == 0:
            first[image] = position
        count[image] += 1


@jit
def clear(rows: np.ndarray, images: np.ndarray, count: np.ndarray) -> None:
    """Sets `count` to zero for the images of `rows`."""
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
    """Of the objects rows[start:start + count], those that overlap `detected` by `least` or more.

    Writes their positions in `rows` and their overlaps, and returns how many they are.
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
    """The object that a detection takes, as a position, or -1 (COCOeval.evaluateImg).

    Args:
        candidates, overlaps: the first `found` are objects of the detection's image and class.
        least: least overlap.
        taken: by position, whether a better detection took the object; only crowds are taken more than once.
        ignored: by position, objects that are chosen only where no other will do.
        crowd: by position.

    Of equal overlaps the last object is chosen, as COCOeval does.
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
