"""Detections and objects by class, best detection first; counts and means of classes; classes shared out to threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet, offsets_of
from detkit.system import available_cores

#: Detections and objects for which another thread is worth its start.
ROWS_A_THREAD = 20_000


def best_first(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows (int64) of `scores` (D,) that are `kept` (D,) bool, best first; equal scores keep their order."""
    rows = np.flatnonzero(kept)
    return rows[np.argsort(-scores[rows], kind="stable")]


def split_by_class(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """`rows` (N,) of each class 1..num_classes, in their order; those with other `labels` (D,) are left out."""
    rows, starts = _by_label(labels, rows, num_classes)
    return [rows[starts[k] : starts[k + 1]] for k in range(num_classes)]


def count_by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) int64: how often each of the labels 1..num_classes occurs; others, from 0 on, are not counted."""
    return np.bincount(labels, minlength=num_classes + 1)[1 : num_classes + 1]


def mean_of_known(values: np.ndarray, of_none: float = float("nan")) -> float:
    """The mean of all values that are not NaN, or `of_none` where all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else of_none


class Grouped(NamedTuple):
    """Rows of an EvaluationSet by class; class k (from 0) has rows starts[k]:starts[k + 1] of each order."""

    detections: np.ndarray  # (D,) int64, detections of a class, best score first; equal ones keep their order
    detection_starts: np.ndarray  # (K + 1,) int64
    detection_images: np.ndarray  # (D,) int32, by the detection's own row
    objects: np.ndarray  # (G,) int64, objects of a class in the order of their images
    object_starts: np.ndarray  # (K + 1,) int64
    object_images: np.ndarray  # (G,) int32, by the object's own row


def group_by_class(evaluation_set: EvaluationSet, num_classes: int) -> Grouped:
    """Sort detections and objects by class; labels beyond 1..num_classes are left out."""
    s = evaluation_set
    detections, detection_starts = _by_label(s.detected_labels, np.arange(len(s.scores)), num_classes)

    def sort(begin: int, end: int) -> None:
        rows = detections[begin:end]
        detections[begin:end] = rows[np.argsort(-s.scores[rows], kind="stable")]

    with ThreadPoolExecutor(_threads_for(len(detections), num_classes)) as pool:
        list(pool.map(sort, detection_starts[:-1].tolist(), detection_starts[1:].tolist()))
    objects, object_starts = _by_label(s.labels, np.arange(len(s.labels)), num_classes)
    return Grouped(detections, detection_starts, s.detection_images, objects, object_starts, s.object_images)


def _by_label(labels: np.ndarray, order: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `order` by label 1..num_classes, those of a label in their order, and where each label starts."""
    labels = labels[order]
    known = (labels >= 1) & (labels <= num_classes)
    if not known.all():
        order, labels = order[known], labels[known]
    return order[stable_order(labels, num_classes + 1)], offsets_of(count_by_class(labels, num_classes))


def stable_order(numbers: np.ndarray, limit: int) -> np.ndarray:
    """The rows (int64) of `numbers`, which are in 0..limit-1, from the least on; equal ones keep their order."""
    # Of 16 bits NumPy uses a radix sort.
    return np.argsort(numbers.astype(np.uint16) if limit <= 2**16 else numbers, kind="stable")


def _threads_for(rows: int, num_classes: int) -> int:
    """How many threads are worth their start."""
    return max(min(available_cores(), num_classes, 1 + rows // ROWS_A_THREAD), 1)


def for_classes(work: Callable[..., None], grouped: Grouped, *arguments: Any) -> None:
    """Call `work` with class numbers (int64, from 0), `grouped` field by field and the arguments, on all cores.

    `work` must release the interpreter's lock, and write the results of a class where no other class does.
    """
    load = np.diff(grouped.detection_starts) + np.diff(grouped.object_starts)
    threads = _threads_for(int(load.sum()), len(load))
    if threads <= 1:
        work(np.arange(len(load)), *grouped, *arguments)
        return
    # The largest class first, to whoever has least to do.
    shares: list[list[int]] = [[] for _ in range(threads)]
    loads = np.zeros(threads)
    for k in np.argsort(-load, kind="stable").tolist():
        least = int(loads.argmin())
        shares[least].append(k)
        loads[least] += load[k]
    with ThreadPoolExecutor(threads) as pool:
        classes = [np.array(sorted(share), np.int64) for share in shares]
        list(pool.map(lambda each: work(each, *grouped, *arguments), classes))
