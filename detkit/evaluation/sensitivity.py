"""Which objects are found worse than others: AP and recall by size and by aspect ratio.

AP by size is COCO's AP by area, at one IoU threshold: objects and misses outside the range are ignored. Aspect ratios
are treated in the same way. The quantiles' shares are those of Hoiem et al., Diagnosing Error in Object Detectors
(ECCV 2012), there within each class, here over the set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from detkit.evaluation.coco import AREA_RANGES, average_precision, evaluate
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import best_first, count_by_class, mean_of_known, split_by_class
from detkit.evaluation.matching import assign

SIZES = ("small", "medium", "large")
#: Shares of the objects below which the sizes end.
QUANTILES = {"extra small": 0.1, "small": 0.3, "medium": 0.7, "large": 0.9, "extra large": 1.0}
#: Ratios, width to height, around those of anchors: 1/4, 1/2, 1, 2, 4, parted half-way between (as factors).
ASPECTS = {
    "very tall": (0.0, 2**-1.5),
    "tall": (2**-1.5, 2**-0.5),
    "square": (2**-0.5, 2**0.5),
    "wide": (2**0.5, 2**1.5),
    "very wide": (2**1.5, float("inf")),
}


@dataclass(frozen=True, slots=True)
class Bin:
    """Some of the objects."""

    name: str  # as a report names it
    low: float  # the least area in square pixels, or width to height; NaN for a class
    high: float  # likewise the largest
    objects: int  # how many there are to find
    recall: float  # share of them that any detection found, NaN for no objects
    ap: float  # mean AP of the classes that have objects in it, NaN for no objects


def by_size(
    evaluation_set: EvaluationSet, num_classes: int, iou_threshold: float = 0.5, max_detections: int = 100
) -> tuple[list[Bin], list[Bin]]:
    """COCO's small, medium and large, whose ends belong to both sides; and the set's own quantiles of area."""
    s, to_find = evaluation_set, evaluation_set.to_find(num_classes)
    areas = s.area[to_find]
    # Without objects any edge will do: there is nothing in the bins.
    edges = np.quantile(areas, list(QUANTILES.values())[:-1]) if len(areas) else np.arange(1.0, len(QUANTILES))
    between = zip(QUANTILES, pairwise([0.0, *edges.tolist(), float("inf")]), strict=True)
    parts = [(name, *AREA_RANGES[name], AREA_RANGES[name][1]) for name in SIZES]
    # A quantile's upper end belongs to the next one only: no object is counted twice.
    parts += [(name, low, high, float(np.nextafter(high, -1))) for name, (low, high) in between]
    ranges = {str(a): (low, most) for a, (_, low, _, most) in enumerate(parts)}
    curves = evaluate(s, num_classes, (iou_threshold,), max_detections=(max_detections,), area_ranges=ranges)
    bins = []
    for a, (name, low, high, most) in enumerate(parts):
        inside = to_find & (s.area >= low) & (s.area <= most)
        objects = count_by_class(s.labels[inside], num_classes)
        present = objects > 0
        recall = _share(curves.recall[0, present, a, 0] @ objects[present], objects.sum())
        ap = mean_of_known(curves.precision[0, :, :, a].mean(axis=0)[present])
        bins.append(Bin(name, low, high, int(objects.sum()), recall, ap))
    return bins[: len(SIZES)], bins[len(SIZES) :]


def by_aspect(
    evaluation_set: EvaluationSet, num_classes: int, iou_threshold: float = 0.5, max_detections: int = 100
) -> list[Bin]:
    """Tall to wide objects: ASPECTS, of which each begins where the one before ends."""
    s, to_find = evaluation_set, evaluation_set.to_find(num_classes)
    ratio, detected_ratio = _ratio(s.boxes), _ratio(s.detected_boxes)
    result = []
    for name, (low, high) in ASPECTS.items():
        inside = (ratio >= low) & (ratio < high)
        detected_inside = (detected_ratio >= low) & (detected_ratio < high)
        part = replace(s, difficult=s.difficult | ~inside)
        assignment = assign(part, num_classes, iou_threshold, max_detections)
        hits = assignment.hits
        ranked = best_first(s.scores, hits | (assignment.misses & detected_inside))
        rows = split_by_class(ranked, s.detected_labels, num_classes)
        objects = count_by_class(s.labels[to_find & inside], num_classes).tolist()
        ap = [average_precision(hits[rows[k]], n) for k, n in enumerate(objects) if n]
        found, total = int(hits.sum()), sum(objects)
        result.append(Bin(name, low, high, total, _share(found, total), mean_of_known(np.array(ap))))
    return result


def _ratio(boxes: np.ndarray) -> np.ndarray:
    """(N,) width to height; the largest number for a box without height, and 1 for a point."""
    width, height = boxes[:, 2], boxes[:, 3]
    flat = np.where(width > 0, np.finfo(np.float64).max, 1.0)
    return np.divide(width, height, out=flat, where=height > 0)


def _share(part: float, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
