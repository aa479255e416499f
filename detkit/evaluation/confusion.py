"""The confusion matrix: which classes are detected as which."""

from __future__ import annotations

import numpy as np

from detkit.errors import ConfigError
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import count_by_class
from detkit.evaluation.matching import ALMOST_ONE, Assignment, overlap
from detkit.system import jit


def confusion_matrix(
    evaluation_set: EvaluationSet,
    num_classes: int,
    assignment: Assignment,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """Count objects by their class and by the class of the detection that covers them.

    Each object and each detection counts once. First come the hits, by COCO's rule. Then each detection left, best
    first, takes the object of another class that it overlaps most, of those that nothing took yet. Detections left
    over are in the row of the background, objects in its column. Ignored objects and detections on them do not count.

    Args:
        num_classes: K.
        assignment: of the detections, at this IoU threshold.
        score_threshold: least score of a detection that counts.
        iou_threshold: least IoU with the object.

    Returns:
        (K + 1, K + 1) int64: rows are the objects' classes, columns the detections', the background last.

    Raises:
        ConfigError: unless 0 < iou_threshold <= 1 and score_threshold is a number.
    """
    if not 0 < iou_threshold <= 1 or np.isnan(score_threshold):
        raise ConfigError(
            f"confusion matrix at iou_threshold={iou_threshold} and score_threshold={score_threshold}: "
            "choose an IoU above 0 and up to 1, and a number as score"
        )
    s = evaluation_set
    kept = s.scores >= score_threshold
    hits, misses = assignment.hits & kept, assignment.misses & kept
    free = s.to_find(num_classes)
    free[assignment.object[hits]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.fill_diagonal(matrix[:-1, :-1], count_by_class(s.detected_labels[hits], num_classes))
    rows = np.flatnonzero(misses)
    images = s.detection_images[rows]  # in their order
    rows = rows[np.lexsort((-s.scores[rows], images))]
    starts = np.searchsorted(images, np.arange(len(s) + 1))
    _confuse(
        s.object_offsets, s.boxes, s.labels, free, rows, starts, s.detected_boxes, s.detected_labels,
        min(iou_threshold, ALMOST_ONE), matrix,
    )  # fmt: skip
    return matrix


@jit
def _confuse(
    object_offsets, boxes, labels, free, rows, starts, detected_boxes, detected_labels, threshold, matrix
):  # fmt: skip
    """Add the misses, rows[starts[i] : starts[i + 1]] of image i, and the `free` objects that no hit took."""
    background = len(matrix) - 1
    for image in range(len(object_offsets) - 1):
        objects = range(object_offsets[image], object_offsets[image + 1])
        for position in range(starts[image], starts[image + 1]):
            row = rows[position]
            best, chosen = threshold, -1
            for i in objects:
                if free[i]:
                    iou = overlap(detected_boxes[row], boxes[i], False)
                    if iou >= best:
                        best, chosen = iou, i
            detected = detected_labels[row] - 1
            if chosen >= 0:
                free[chosen] = False
                matrix[labels[chosen] - 1, detected] += 1
            else:
                matrix[background, detected] += 1
        for i in objects:
            if free[i]:
                matrix[labels[i] - 1, background] += 1
