"""Which object a detection takes: COCO's rule, compiled.

The detections of a class are walked from the best score to the worst, over all images at once: what an image's
detections take depends on their own order only, and accumulating precision needs the order over all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# What a division by nothing gives is decided where it may happen; numba need not look.
jit = njit(cache=True, nogil=True, error_model="numpy")


@jit
def by_score(rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`rows` (int64) of `scores`, best first; equal scores keep their order."""
    return rows[np.argsort(-scores[rows], kind="mergesort")]


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
def choose(
    overlaps: np.ndarray, threshold: float, taken: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> int:
    """The object that a detection takes, by number, or -1 (COCOeval.evaluateImg).

    Args:
        overlaps: (n,) with the objects of its image and class.
        threshold: least overlap.
        taken: (n,) whether a better detection took the object; only crowds are taken more than once.
        ignored: (n,) objects that are chosen only where no other will do.
        crowd: (n,).

    Of equal overlaps the last object is chosen, as COCOeval does.
    """
    least = min(threshold, 1 - 1e-10)
    for wanted in (False, True):
        best, chosen = least, -1
        for i in range(len(overlaps)):
            if ignored[i] == wanted and overlaps[i] >= best and (crowd[i] or not taken[i]):
                best, chosen = overlaps[i], i
        if chosen >= 0:
            return chosen
    return -1
