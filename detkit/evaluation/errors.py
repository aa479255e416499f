"""Why detections are wrong and objects not found: the six kinds of TIDE (arXiv 2008.08115, section 2), and their cost.

With the IoU thresholds t_f = 0.5 (foreground) and t_b = 0.1 (background), a miss is the first of these that fits:

    localization    t_b <= best IoU with an object of its own class < t_f
    classification  best IoU with an object of another class >= t_f
    duplicate       best IoU with an object of its own class >= t_f: a better detection took that object
    both            best IoU with an object of another class >= t_b
    background      no object of any class overlaps it by t_b

and an object is `missed` if no detection found it and no localization or classification error is about it.

As in tidecv, an error may be about an object that is found already, and of several errors about one object only the
best-scored could find it. Unlike in tidecv, hits are COCO's (up to 100 detections of an image and class; of equal IoUs
the last object), and a detection on an ignored object is no error. IoUs of exactly t_b and t_f are as in the paper.

The cost of a kind is what correcting all errors of that kind alone would add to the mean AP: TIDE's dAP (section 2.3),
with AP at IoU t_f over COCO's 101 recalls. Correcting is

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

from detkit.errors import ConfigError
from detkit.evaluation.coco import average_precision
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import count_by_class, mean_of_known, split_by_class
from detkit.evaluation.matching import ALMOST_ONE, Assignment, overlap
from detkit.system import jit

ERROR_KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
# Positions in ERROR_KINDS.
CLASSIFICATION_ERROR, LOCALIZATION_ERROR, BOTH_ERROR, DUPLICATE_ERROR, BACKGROUND_ERROR = range(5)
FOREGROUND, BACKGROUND = 0.5, 0.1


@dataclass(frozen=True, eq=False, slots=True)
class Errors:
    """The errors of D detections and G objects."""

    # (D,) int8, position in ERROR_KINDS; -1 for hits, for detections on ignored objects, and beyond the limit.
    kind: np.ndarray
    missed: np.ndarray  # (G,) bool, objects that count as `missed`
    # (D,) int64, row of the object that a classification, localization or duplicate error is about, else -1.
    object: np.ndarray
    repairs: np.ndarray  # (D,) bool, the best-scored error about an object not found: corrected, it would find it

    def counts(self) -> dict[str, int]:
        """How many errors there are of each kind."""
        found = np.bincount(self.kind[self.kind >= 0], minlength=len(ERROR_KINDS) - 1).tolist()
        return dict(zip(ERROR_KINDS, [*found, int(self.missed.sum())], strict=True))


def find_errors(
    evaluation_set: EvaluationSet,
    num_classes: int,
    assignment: Assignment,
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
) -> Errors:
    """Sort errors into TIDE's kinds.

    Args:
        num_classes: K; labels beyond 1..K do not count.
        assignment: of the detections, at the IoU threshold `foreground`.
        foreground: t_f, least IoU of a hit.
        background: t_b, least IoU of a detection that meant an object.

    Raises:
        ConfigError: unless 0 < background < foreground <= 1.
    """
    if not 0 < background < foreground <= 1:
        raise ConfigError(
            f"error analysis at foreground={foreground} and background={background}: "
            "choose 0 < background < foreground <= 1"
        )
    s = evaluation_set
    to_find = s.to_find(num_classes)
    taken = np.zeros(len(s.labels), bool)
    taken[assignment.object[assignment.hits]] = True
    kind = np.full(len(s.scores), -1, np.int8)
    object_of = np.full(len(s.scores), -1, np.int64)
    best_claim = np.full(len(s.labels), -1, np.int64)
    _classify(
        s.object_offsets, s.detection_offsets, s.boxes, s.labels, to_find, taken, s.detected_boxes, s.detected_labels,
        s.scores, assignment.misses, min(foreground, ALMOST_ONE), float(background), kind, object_of, best_claim,
    )  # fmt: skip
    repairs = np.zeros(len(s.scores), bool)
    repairs[best_claim[best_claim >= 0]] = True
    return Errors(kind, to_find & ~taken & (best_claim < 0), object_of, repairs)


@dataclass(frozen=True, eq=False, slots=True)
class ErrorAP:
    """Average precision, and what would be added to it; in 0..1, NaN where there is no object to find."""

    base: float  # mean AP of the classes with objects
    dap: dict[str, float]  # what correcting each of ERROR_KINDS adds to it, at least 0
    false_positives: float  # what it adds to remove all false positives
    false_negatives: float  # what it adds to remove all objects that are not found
    base_per_class: np.ndarray  # (K,) AP of each class


def error_ap(evaluation_set: EvaluationSet, num_classes: int, errors: Errors, assignment: Assignment) -> ErrorAP:
    """Compute what mending the errors of each kind adds to the mean AP; `errors` are those of `assignment`."""
    s, hits, ranked = evaluation_set, assignment.hits, assignment.ranked
    objects = count_by_class(s.labels[s.to_find(num_classes)], num_classes)

    def average(keep=None, hits=hits, labels=s.detected_labels, objects_left=objects) -> np.ndarray:
        rows = split_by_class(ranked if keep is None else ranked[keep[ranked]], labels, num_classes)
        result = np.full(num_classes, np.nan)
        for k in np.flatnonzero(objects).tolist():
            if objects_left[k]:
                result[k] = average_precision(hits[rows[k]], int(objects_left[k]))
            elif len(rows[k]):
                result[k] = 0.0
        return result

    def corrected(kind: str) -> np.ndarray:
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
        # Correcting never takes anything away; less than 0 is the last digit of a mean.
        return float("nan") if np.isnan(base) else max(mean_of_known(result, of_none=1.0) - base, 0.0)

    return ErrorAP(
        base=base,
        dap={kind: added(corrected(kind)) for kind in ERROR_KINDS},
        false_positives=added(average(keep=hits)),
        false_negatives=added(average(objects_left=found)),
        base_per_class=base_per_class,
    )


@jit
def _classify(
    object_offsets, detection_offsets, boxes, labels, to_find, taken, detected_boxes, detected_labels, scores, misses,
    foreground, background, kind, object_of, best_claim,
):  # fmt: skip
    """Write `kind` and `object_of` of the misses, and `best_claim` (G,): the miss that would find the object, or -1."""
    for image in range(len(object_offsets) - 1):
        first, end = object_offsets[image], object_offsets[image + 1]
        for row in range(detection_offsets[image], detection_offsets[image + 1]):
            if not misses[row]:
                continue
            same, other = 0.0, 0.0
            same_object, other_object = -1, -1
            for i in range(first, end):
                if not to_find[i]:
                    continue
                iou = overlap(detected_boxes[row], boxes[i], False)
                if labels[i] == detected_labels[row]:
                    if iou > same:
                        same, same_object = iou, i
                elif iou > other:
                    other, other_object = iou, i
            chosen = -1
            if background <= same < foreground:
                kind[row], chosen = LOCALIZATION_ERROR, same_object
            elif other >= foreground:
                kind[row], chosen = CLASSIFICATION_ERROR, other_object
            elif same >= foreground:
                kind[row] = DUPLICATE_ERROR
                object_of[row] = same_object
            else:
                kind[row] = BOTH_ERROR if other >= background else BACKGROUND_ERROR
            if chosen >= 0:
                object_of[row] = chosen
                rival = best_claim[chosen]
                if not taken[chosen] and (rival < 0 or scores[row] > scores[rival]):
                    best_claim[chosen] = row
