"""Why a detection is wrong: TIDE's tests, compiled. Images are walked one by one, over flat arrays."""

from __future__ import annotations

from .matching import jit, overlap

# Positions in errors.ERROR_KINDS.
CLASSIFICATION, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND = range(5)


@jit
def classify(
    object_offsets, detection_offsets, boxes, labels, to_find, taken, detected_boxes, detected_labels, scores, misses,
    foreground, background, kind, object_of, best_claim,
):  # fmt: skip
    """Writes kind and object_of (D,) of the misses, and best_claim (G,).

    Args:
        to_find: (G,) bool, objects that count.
        taken: (G,) bool, those that a hit found.
        misses: (D,) bool, detections to explain.
        kind: (D,) int8, from -1.
        object_of: (D,) int64, from -1: the object that a classification, localization or duplicate error is about.
        best_claim: (G,) int64, from -1: the best detection that would find an untaken object, were it mended.
    """
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
                kind[row], chosen = LOCALIZATION, same_object
            elif other >= foreground:
                kind[row], chosen = CLASSIFICATION, other_object
            elif same >= foreground:
                kind[row] = DUPLICATE
                object_of[row] = same_object
            elif other >= background:
                kind[row] = BOTH
            else:
                kind[row] = BACKGROUND
            if chosen >= 0:
                object_of[row] = chosen
                rival = best_claim[chosen]
                if not taken[chosen] and (rival < 0 or scores[row] > scores[rival]):
                    best_claim[chosen] = row
