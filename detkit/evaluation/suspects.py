"""Label suspects: where a detector that is mostly right contradicts the labels.

A detection's evidence e is its score divided by a high score of hits (their 95 % quantile), so that detectors whose
best scores are 0.6 are read as those whose best are 0.99. A label's own evidence is that of the best detection of its
class with an IoU of at least 0.5. The suspicion of each kind, in about 0..1:

    missing       a detection, and no label of any class overlaps it by 0.5:           e (1 - 2 IoU)
    wrong class   a label that a detection of another class overlaps by 0.5:           e (1 - own)
    loose box     a label that a detection of its class overlaps by 0.2 to 0.5 only:   e (1 - own)
    spurious      a label that nothing explains, where such labels are mostly found:   found (1 - own)

`found` is the share of the labels of the same class and about the same size (the nearest 51 by area) that have evidence
of at least 0.1. A label is listed once. Ignored objects are no suspects, and detections on them neither.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detkit.evaluation.analysis import Analysis
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.matching import overlap
from detkit.system import jit

#: Least AP at IoU 0.5 of a detector that may judge labels.
TRUSTED = 0.5
LEAST = 0.5  # suspicion that is listed
OVERLAP, LOOSE = 0.5, 0.2  # IoUs
ALIKE = 51  # labels
SEEN = 0.1  # evidence of a label that was found at all
TOP = 0.95  # quantile


class Suspect(NamedTuple):
    """A label that may be wrong, or a place where one may be missing."""

    kind: str  # missing, wrong class, loose box or spurious
    suspicion: float  # about 0..1
    image: int  # its number in the set
    label: int  # row of the object in the set, -1 for a missing one
    detection: int  # row of the detection that contradicts it, -1 for a spurious label


def find_suspects(evaluation_set: EvaluationSet, analysis: Analysis) -> list[Suspect]:
    """The suspects of at least LEAST, most suspicious first; none where AP at IoU 0.5 is below TRUSTED."""
    s, hits = evaluation_set, analysis.assignment.hits
    if not analysis.base_ap >= TRUSTED:  # NaN included
        return []
    top = np.quantile(s.scores[hits], TOP)
    evidence = np.where(analysis.assignment.counted, np.maximum(s.scores, 0) / top, 0.0) if top > 0 else s.scores * 0
    to_find = s.to_find(len(analysis.class_names))
    own, claim, claimed_by = np.zeros(len(to_find)), np.zeros(len(to_find)), np.full(len(to_find), -1, np.int64)
    apart = np.zeros(len(s.scores))
    _contradict(
        s.object_offsets, s.detection_offsets, s.boxes, s.labels, to_find, s.crowd, s.detected_boxes, s.detected_labels,
        evidence, own, claim, claimed_by, apart,
    )  # fmt: skip
    doubt = 1 - np.minimum(own, 1)
    explained = claim * doubt
    unexplained = _found_share(s, to_find, own >= SEEN) * doubt
    suspicion = np.where(to_find, np.maximum(explained, unexplained), 0.0)
    is_explained = explained >= unexplained / 2  # a contradiction says more than silence
    suspects = []
    images, detection_images = s.object_images, s.detection_images
    for row in np.flatnonzero(suspicion >= LEAST).tolist():
        by = int(claimed_by[row]) if is_explained[row] else -1
        kind = "spurious" if by < 0 else "loose box" if s.detected_labels[by] == s.labels[row] else "wrong class"
        suspects.append(Suspect(kind, float(suspicion[row]), int(images[row]), row, by))
    apart *= evidence
    apart[[each.detection for each in suspects if each.detection >= 0]] = 0
    for row in np.flatnonzero(apart >= LEAST).tolist():
        suspects.append(Suspect("missing", float(apart[row]), int(detection_images[row]), -1, row))
    return sorted(suspects, key=lambda suspect: -suspect.suspicion)


def _found_share(s: EvaluationSet, to_find: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(G,) the share of the ALIKE labels of the same class that are nearest in area which are `found` (G,) bool."""
    share = np.zeros(len(found))
    for label in np.unique(s.labels[to_find]):
        rows = np.flatnonzero(to_find & (s.labels == label))
        rows = rows[np.argsort(s.area[rows], kind="stable")]
        total = np.concatenate(([0], np.cumsum(found[rows])))
        begin = np.clip(np.arange(len(rows)) - ALIKE // 2, 0, max(len(rows) - ALIKE, 0))
        end = np.minimum(begin + ALIKE, len(rows))
        share[rows] = (total[end] - total[begin]) / (end - begin)
    return share


@jit
def _contradict(
    object_offsets, detection_offsets, boxes, labels, to_find, crowd, detected_boxes, detected_labels, evidence,
    own, claim, claimed_by, apart,
):  # fmt: skip
    """Write what speaks for and against each label, and how far each detection lies from any.

    own, claim (G,): the best evidence for the label, and for another class or another box in its place; claimed_by
    (G,): the detection of the latter; apart (D,): 1 - 2 IoU with the nearest label, 0 from an IoU of 0.5 on or where
    an ignored object is near.
    """
    for image in range(len(object_offsets) - 1):
        objects = range(object_offsets[image], object_offsets[image + 1])
        for row in range(detection_offsets[image], detection_offsets[image + 1]):
            nearest, most, on_ignored = -1, 0.0, False
            for i in objects:
                if not to_find[i]:
                    on_ignored |= overlap(detected_boxes[row], boxes[i], crowd[i]) >= LOOSE
                    continue
                iou = overlap(detected_boxes[row], boxes[i], False)
                if iou > most:
                    nearest, most = i, iou
                if iou < OVERLAP:
                    continue
                if labels[i] == detected_labels[row]:
                    own[i] = max(own[i], evidence[row])
                elif evidence[row] > claim[i]:
                    claim[i], claimed_by[i] = evidence[row], row
            is_loose = nearest >= 0 and LOOSE <= most < OVERLAP and labels[nearest] == detected_labels[row]
            if is_loose and evidence[row] > claim[nearest]:
                claim[nearest], claimed_by[nearest] = evidence[row], row
            if not on_ignored:
                apart[row] = max(1 - most / OVERLAP, 0.0)
