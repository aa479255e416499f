"""The detections and objects of a set by class, and the classes shared out to threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from detkit.compiled import jit

from .evaluation_set import EvaluationSet


class Grouped(NamedTuple):
    """Rows of an EvaluationSet by class; class k (from 0) has rows starts[k]:starts[k + 1] of each order.

    Attributes:
        detections: (D,) int64, detections of a class in the order of their images.
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
    """Sorts detections and objects by class, stably; labels beyond 1..num_classes are left out."""
    detections, detection_starts = _by_label(evaluation_set.detected_labels, num_classes)
    objects, object_starts = _by_label(evaluation_set.labels, num_classes)
    return Grouped(
        detections,
        detection_starts,
        evaluation_set.detection_images,
        objects,
        object_starts,
        evaluation_set.object_images,
    )


@jit
def _by_label(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by label 1..num_classes in a counting sort, and where each label starts."""
    starts = np.zeros(num_classes + 1, np.int64)
    for label in labels:
        if 1 <= label <= num_classes:
            starts[label] += 1
    for k in range(num_classes):
        starts[k + 1] += starts[k]
    rows = np.empty(starts[num_classes], np.int64)
    following = starts[:-1].copy()
    for row in range(len(labels)):
        label = labels[row]
        if 1 <= label <= num_classes:
            rows[following[label - 1]] = row
            following[label - 1] += 1
    return rows, starts


def rank(grouped: Grouped, scores: np.ndarray, classes: np.ndarray) -> None:
    """Puts the detections of `classes` (from 0) in the order of their scores, best first; equal ones keep theirs."""
    for k in classes.tolist():
        rows = grouped.detections[grouped.detection_starts[k] : grouped.detection_starts[k + 1]]
        rows[:] = rows[np.argsort(-scores[rows], kind="stable")]


def for_classes(work: Callable[[np.ndarray], None], grouped: Grouped) -> None:
    """Calls `work` with class numbers (int64, from 0), on as many threads as there are cores.

    `work` must release the interpreter's lock, and write the results of a class where no other class does. A little
    work is done at once: starting threads takes longer.
    """
    load = np.diff(grouped.detection_starts) + np.diff(grouped.object_starts)
    threads = min(_cores(), len(load), 1 + int(load.sum()) // 20_000)
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


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
