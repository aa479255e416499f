"""The analysis of a set of detections: errors, curves, confusions and sensitivities beside the mean AP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkit.evaluation.coco import RECALL_THRESHOLDS
from detkit.evaluation.confusion import confusion_matrix
from detkit.evaluation.curves import ClassCurve, WorkingPoint, best_f1, precision_recall
from detkit.evaluation.errors import BACKGROUND, FOREGROUND, Errors, error_ap, find_errors
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.matching import Assignment, assign
from detkit.evaluation.sensitivity import Bin, by_aspect, by_size
from detkit.files import to_json


@dataclass(frozen=True, eq=False, slots=True)
class Analysis:
    """Errors, curves, confusions and sensitivities of K classes, by COCO's matching at one IoU threshold.

    Shares and average precisions are in 0..1, and NaN where there is nothing to count.
    """

    class_names: list[str]  # K names
    foreground: float  # the IoU threshold of a hit
    background: float  # that of an error about an object
    base_ap: float  # mean AP at the IoU `foreground`
    error_ap: dict[str, float]  # what would be added to it if all errors of one of errors.ERROR_KINDS were corrected
    false_positive_ap: float  # what would be added to it without false positives
    false_negative_ap: float  # what would be added to it if objects that are not found did not count
    error_counts: dict[str, int]  # how many errors there are of each kind
    score_threshold: float  # of the confusion matrix
    by_size: list[Bin]  # AP and recall of parts of the objects, here and in the next three
    by_quantile: list[Bin]
    by_aspect: list[Bin]
    by_class: list[Bin]
    confusion: np.ndarray  # (K + 1, K + 1) int64, see `confusion_matrix`
    working_points: list[WorkingPoint]  # for each class, the score threshold with the best F1
    curves: list[ClassCurve]  # precision and recall of each class
    errors: Errors  # what is wrong with each detection, and which objects are missed
    assignment: Assignment  # what each detection took

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: NaN and infinity are None, and single detections and objects are left out.

        Of a curve, the best precision at each of COCO's 101 recalls or beyond is kept, and the score at which it is
        reached (0 and None where it is not), to six digits.
        """
        result = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("by_size", "by_quantile", "by_aspect", "by_class", "working_points"):
            result[name] = [asdict(row) for row in result[name]]
        for name in ("curves", "errors", "assignment"):
            del result[name]
        result["curve_recalls"] = [round(recall, 2) for recall in RECALL_THRESHOLDS]
        result["curves"] = [_sampled(curve) for curve in self.curves]
        return to_json(result)


def analyse(
    evaluation_set: EvaluationSet,
    classes: int | Sequence[str],
    score_threshold: float | None = None,
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
    max_detections: int = 100,
) -> Analysis:
    """Compute errors, curves, confusions and sensitivities.

    Args:
        classes: the names of the classes in the order of their labels, or how many there are.
        score_threshold: least score in the confusion matrix. None: the one with the best F1 over the detections of all
            classes together (0.5 where there is none).
        foreground: least IoU of a hit.
        background: least IoU of a detection that meant an object.
        max_detections: how many detections of an image and class count.

    Raises:
        ConfigError: for thresholds that make no sense.
    """
    names = [str(label) for label in range(1, classes + 1)] if isinstance(classes, int) else list(classes)
    s, count = evaluation_set, len(names)
    assignment = assign(s, count, foreground, max_detections)
    errors = find_errors(s, count, assignment, foreground, background)
    costs = error_ap(s, count, errors, assignment)
    overall, *curves = precision_recall(s, count, assignment)
    if score_threshold is None:
        best = best_f1(overall).score
        score_threshold = 0.5 if math.isnan(best) else best
    sizes, quantiles = by_size(s, count, foreground, max_detections)
    return Analysis(
        class_names=names,
        foreground=foreground,
        background=background,
        base_ap=costs.base,
        error_ap=costs.dap,
        false_positive_ap=costs.false_positives,
        false_negative_ap=costs.false_negatives,
        error_counts=errors.counts(),
        score_threshold=float(score_threshold),
        by_size=sizes,
        by_quantile=quantiles,
        by_aspect=by_aspect(s, count, foreground, max_detections),
        by_class=[
            Bin(name, math.nan, math.nan, curve.num_objects, curve.last_recall, float(ap))
            for name, curve, ap in zip(names, curves, costs.base_per_class, strict=True)
        ],
        confusion=confusion_matrix(s, count, assignment, score_threshold, foreground),
        working_points=[best_f1(curve) for curve in curves],
        curves=curves,
        errors=errors,
        assignment=assignment,
    )


def _sampled(curve: ClassCurve) -> dict[str, Any]:
    """The curve at COCO's recalls; NaN is the score of a recall that is not reached."""
    columns = np.zeros((2, 0))
    if curve.num_objects:
        at = np.searchsorted(curve.recall, RECALL_THRESHOLDS)
        columns = np.stack((curve.best_precision(RECALL_THRESHOLDS), np.append(curve.scores, np.nan)[at]))
    precision, scores = ([float(f"{value:.6g}") for value in column] for column in columns.tolist())
    return {"label": curve.label, "num_objects": curve.num_objects, "precision": precision, "scores": scores}
