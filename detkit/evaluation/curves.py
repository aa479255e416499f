"""Precision against recall of each class, and the score threshold that balances them best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import split_by_class
from detkit.evaluation.matching import Assignment


@dataclass(frozen=True, eq=False, slots=True)
class ClassCurve:
    """What the first n detections are worth, for each n; detections on ignored objects are left out."""

    label: int  # the class, 1..K; 0 for all classes together
    scores: np.ndarray  # (N,) float64, descending
    precision: np.ndarray  # (N,) float64, share of the detections so far that are hits
    recall: np.ndarray  # (N,) float64, share of the objects that are found so far; NaN without objects
    num_objects: int  # how many there are to find

    @property
    def last_recall(self) -> float:
        """Share of the objects that are found at all; NaN without objects."""
        return float(self.recall[-1]) if len(self.recall) else 0.0 if self.num_objects else float("nan")

    def best_precision(self, recalls: Sequence[float] | np.ndarray) -> np.ndarray:
        """(R,) best precision at each recall or beyond, 0 where no recall is as high; COCO's AP is its mean."""
        best = np.maximum.accumulate(self.precision[::-1])[::-1] if self.num_objects else np.zeros(0)
        return np.append(best, 0.0)[np.minimum(np.searchsorted(self.recall, recalls), len(best))]


@dataclass(frozen=True, slots=True)
class WorkingPoint:
    """Precision, recall and their harmonic mean if detections with `score` or more are kept; NaN if undefined."""

    score: float
    precision: float
    recall: float
    f1: float


def precision_recall(evaluation_set: EvaluationSet, num_classes: int, assignment: Assignment) -> list[ClassCurve]:
    """K + 1 curves at the IoU threshold of `assignment`: of all classes together, then of each class 1..num_classes.

    Of all classes the detections are ranked together: what one score threshold for all of them gives.
    """
    s, ranked = evaluation_set, assignment.ranked
    objects = np.bincount(s.labels[s.to_find(num_classes)], minlength=num_classes + 1)
    objects[0] = objects.sum()
    curves = []
    for label, rows in enumerate([ranked, *split_by_class(ranked, s.detected_labels, num_classes)]):
        found, count = np.cumsum(assignment.hits[rows]), int(objects[label])
        recall = found / count if count else np.full(len(rows), np.nan)
        curves.append(ClassCurve(label, s.scores[rows], found / np.arange(1, len(rows) + 1), recall, count))
    return curves


def best_f1(curve: ClassCurve) -> WorkingPoint:
    """The score threshold with the highest F1, of equals the highest; all NaN without objects or detections.

    Equal scores are kept or dropped together: there is no threshold between them.
    """
    if not curve.num_objects or not len(curve.scores):
        return WorkingPoint(*[float("nan")] * 4)
    kept = np.flatnonzero(np.append(curve.scores[1:] != curve.scores[:-1], True))
    # 2 hits / (detections + objects) is the harmonic mean without a division by nothing where there is no hit.
    hits = np.rint(curve.recall[kept] * curve.num_objects)
    f1 = 2 * hits / (kept + 1 + curve.num_objects)
    best = int(f1.argmax())
    at = kept[best]
    return WorkingPoint(float(curve.scores[at]), float(curve.precision[at]), float(curve.recall[at]), float(f1[best]))
