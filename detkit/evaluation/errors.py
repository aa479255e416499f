"""Why detections are wrong and objects not found: the six kinds of TIDE (arXiv 2008.08115, section 2).

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
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.errors import ConfigError
from detkit.evaluation.evaluation_set import EvaluationSet
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


def objects_to_find(evaluation_set: EvaluationSet, num_classes: int) -> np.ndarray:
    """(G,) bool: objects that count, of the classes 1..num_classes."""
    labels = evaluation_set.labels
    return ~evaluation_set.ignored & (labels >= 1) & (labels <= num_classes)


def find_errors(
    evaluation_set: EvaluationSet,
    num_classes: int,
    assignment: Assignment,
    foreground: float = FOREGROUND,
    background: float = BACKGROUND,
) -> Errors:
    """Sort errors into TIDE's kinds.

    Args:
        evaluation_set: objects and detections.
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
    to_find = objects_to_find(s, num_classes)
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
