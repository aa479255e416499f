"""The AP that each kind of error costs: what correcting all errors of one kind would add to the mean AP.

TIDE's dAP (arXiv 2008.08115, section 2.3), with AP at IoU t_f over COCO's 101 recalls. Correcting is

    classification, localization  of the errors about an object that is not found, the best-scored of either kind
                                  becomes a hit of the object's class; the others are removed
    duplicate, both, background   the detection is removed
    missed                        the object is removed from the number to find
    false positives               all misses are removed
    false negatives               all objects that are not found are removed from the number to find

As in tidecv, a class whose last object was removed leaves the mean if it has no detection, and counts 0 if it has
misses; where no class is left, the mean is 1. As in COCOeval and unlike tidecv, classes without objects have no AP, and
some of the 101 recalls (0.35, 0.7, ...) are slightly above the fraction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.coco import average_precision
from detkit.evaluation.errors import ERROR_KINDS, Errors, objects_to_find
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import count_by_class, mean_of_known, split_by_class
from detkit.evaluation.matching import Assignment


@dataclass(frozen=True, eq=False, slots=True)
class ErrorAP:
    """Average precision, and what would be added to it; in 0..1, NaN where there is no object to find."""

    base: float  # mean AP of the classes with objects
    dap: dict[str, float]  # what mending each of ERROR_KINDS adds to it, at least 0
    false_positives: float  # what it adds to remove all misses
    false_negatives: float  # what it adds if only what was found need be found
    base_per_class: np.ndarray  # (K,) AP of each class


def error_ap(evaluation_set: EvaluationSet, num_classes: int, errors: Errors, assignment: Assignment) -> ErrorAP:
    """Compute what mending the errors of each kind adds to the mean AP; `errors` are those of `assignment`."""
    s, hits, ranked = evaluation_set, assignment.hits, assignment.ranked
    objects = count_by_class(s.labels[objects_to_find(s, num_classes)], num_classes)

    def average(keep=None, hits=hits, labels=s.detected_labels, objects_left=objects) -> np.ndarray:
        rows = split_by_class(ranked if keep is None else ranked[keep[ranked]], labels, num_classes)
        result = np.full(num_classes, np.nan)
        for k in np.flatnonzero(objects).tolist():
            if objects_left[k]:
                result[k] = average_precision(hits[rows[k]], int(objects_left[k]))
            elif len(rows[k]):
                result[k] = 0.0
        return result

    def mended(kind: str) -> np.ndarray:
        if kind == "missed":
            return average(objects_left=objects - count_by_class(s.labels[errors.missed], num_classes))
        wrong = errors.kind == ERROR_KINDS.index(kind)
        repaired = wrong & errors.repairs
        labels = s.detected_labels.copy()
        labels[repaired] = s.labels[errors.object[repaired]]
        return average(~wrong | repaired, hits | repaired, labels)

    base_per_class = average()
    base = mean_of_known(base_per_class)
    found = count_by_class(s.labels[assignment.object[hits]], num_classes)

    def added(result: np.ndarray) -> float:
        # Mending never takes anything away; less than 0 is the last digit of a mean.
        return float("nan") if np.isnan(base) else max(mean_of_known(result, of_none=1.0) - base, 0.0)

    return ErrorAP(
        base=base,
        dap={kind: added(mended(kind)) for kind in ERROR_KINDS},
        false_positives=added(average(keep=hits)),
        false_negatives=added(average(objects_left=found)),
        base_per_class=base_per_class,
    )
