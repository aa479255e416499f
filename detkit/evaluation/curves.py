"""Precision against recall of each class, and the score threshold that balances them best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.evaluation.errors import objects_to_find
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import best_first, split_by_class
from detkit.evaluation.matching import Assignment


@dataclass(frozen=True, eq=False, slots=True)
class ClassCurve:
    """What the first n detections are worth, for each n; detections on ignored objects are left out.

    Attributes:
        label: the class, 1..K; 0 for all classes together.
        scores: (N,) float64, descending.
        precision: (N,) float64, share of the detections so far that are hits.
        recall: (N,) float64, share of the objects that are found so far; NaN without objects.
        num_objects: how many there are to find.
    """

    label: int
    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    num_objects: int

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


def precision_recall(
    evaluation_set: EvaluationSet, num_classes: int, assignment: Assignment, ranked: np.ndarray | None = None
) -> list[ClassCurve]:
    """The curve of each class 1..num_classes, at the IoU threshold of `assignment`.

    ranked: `best_first` of the scores, where it is at hand already.
    """
    hits, points = assignment.hits, _points(evaluation_set, assignment, ranked)
    rows = split_by_class(points, evaluation_set.detected_labels, num_classes)
    labels = evaluation_set.labels[objects_to_find(evaluation_set, num_classes)]
    objects = np.bincount(labels, minlength=num_classes + 1).tolist()
    return [_curve(k + 1, evaluation_set.scores[rows[k]], hits[rows[k]], objects[k + 1]) for k in range(num_classes)]


def overall_curve(
    evaluation_set: EvaluationSet, num_classes: int, assignment: Assignment, ranked: np.ndarray | None = None
) -> ClassCurve:
    """The curve of all classes' detections ranked together: what one threshold for all classes gives."""
    rows = _points(evaluation_set, assignment, ranked)
    objects = int(objects_to_find(evaluation_set, num_classes).sum())
    return _curve(0, evaluation_set.scores[rows], assignment.hits[rows], objects)


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


def _points(evaluation_set: EvaluationSet, assignment: Assignment, ranked: np.ndarray | None) -> np.ndarray:
    """Rows of the detections that are hits or misses, best first."""
    ranked = best_first(evaluation_set.scores) if ranked is None else ranked
    return ranked[(assignment.counted & ~assignment.ignored)[ranked]]


def _curve(label: int, scores: np.ndarray, hits: np.ndarray, num_objects: int) -> ClassCurve:
    found = np.cumsum(hits)
    recall = found / num_objects if num_objects else np.full(len(hits), np.nan)
    return ClassCurve(label, scores, found / np.arange(1, len(hits) + 1), recall, num_objects)
