"""Detections and objects by class, best detection first, and the classes shared out to threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.system import available_cores, jit

#: Detections and objects for which another thread is worth its start.
ROWS_A_THREAD = 20_000


def best_first(scores: np.ndarray) -> np.ndarray:
    """Rows (int64) of `scores` (D,), best first; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")


def split_by_class(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """`rows` (N,) of each class 1..num_classes, in their order; those with other `labels` (D,) are left out."""
    # NumPy sorts 16 bits by counting; more would be many times slower.
    kind = np.int16 if num_classes < 2**15 - 1 else np.int32
    small = np.clip(labels[rows], 0, num_classes + 1).astype(kind)
    order = np.argsort(small, kind="stable")
    ends = np.searchsorted(small[order], np.arange(num_classes + 1, dtype=kind), side="right")
    rows = rows[order]
    return [rows[ends[k] : ends[k + 1]] for k in range(num_classes)]


class Grouped(NamedTuple):
    """Rows of an EvaluationSet by class; class k (from 0) has rows starts[k]:starts[k + 1] of each order.

    Attributes:
        detections: (D,) int64, detections of a class, best score first; equal ones keep their order.
        detection_starts: (K + 1,) int64.
        detection_images: (D,) int32, by the detection's own row.
        objects: (G,) int64, objects of a class in the order of their images.
        object_starts: (K + 1,) int64.
        object_images: (G,) int32, by the object's own row.
    """

    detections: np.ndarray
    detection_starts: np.ndarray
    detection_images: np.ndarray
    objects: np.ndarray
    object_starts: np.ndarray
    object_images: np.ndarray


def group_by_class(evaluation_set: EvaluationSet, num_classes: int) -> Grouped:
    """Sort detections and objects by class; labels beyond 1..num_classes are left out."""
    s = evaluation_set
    detections, detection_starts = _by_label(s.detected_labels, best_first(s.scores), num_classes)
    objects, object_starts = _by_label(s.labels, np.arange(len(s.labels)), num_classes)
    return Grouped(detections, detection_starts, s.detection_images, objects, object_starts, s.object_images)


@jit
def _by_label(labels: np.ndarray, order: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `order` by label 1..num_classes in a counting sort, and where each label starts."""
    starts = np.zeros(num_classes + 1, np.int64)
    for label in labels:
        if 1 <= label <= num_classes:
            starts[label] += 1
    for k in range(num_classes):
        starts[k + 1] += starts[k]
    rows = np.empty(starts[num_classes], np.int64)
    following = starts[:-1].copy()
    for row in order:
        label = labels[row]
        if 1 <= label <= num_classes:
            rows[following[label - 1]] = row
            following[label - 1] += 1
    return rows, starts


def for_classes(work: Callable[[np.ndarray], None], grouped: Grouped) -> None:
    """Call `work` with class numbers (int64, from 0), on as many threads as there are cores.

    `work` must release the interpreter's lock, and write the results of a class where no other class does.
    """
    load = np.diff(grouped.detection_starts) + np.diff(grouped.object_starts)
    threads = min(available_cores(), len(load), 1 + int(load.sum()) // ROWS_A_THREAD)
    if threads <= 1:
        work(np.arange(len(load)))
        return
    # The largest class first, to whoever has least to do.
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = np.zeros(threads)
    for k in np.argsort(-load, kind="stable").tolist():
        least = int(loads.argmin())
        shares[least].append(k)
        loads[least] += load[k]
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, np.array(sorted(share), np.int64)) for share in shares]:
            future.result()
