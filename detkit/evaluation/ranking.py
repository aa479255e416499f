"""Detections of each class, best first."""

from __future__ import annotations

import numpy as np


def best_first(scores: np.ndarray) -> np.ndarray:
    """Rows (int64) of `scores` (D,), best first; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")


def split_by_class(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """`rows` of each class 1..num_classes, in their order.

    Args:
        rows: (N,) int64, rows of `labels`; those with labels beyond 1..num_classes are left out.
        labels: (D,) int32.
    """
    # NumPy sorts 16 bits by counting; more would be many times slower.
    kind = np.int16 if num_classes < 2**15 - 1 else np.int32
    small = np.clip(labels[rows], 0, num_classes + 1).astype(kind)
    order = np.argsort(small, kind="stable")
    ends = np.searchsorted(small[order], np.arange(num_classes + 1, dtype=kind), side="right")
    rows = rows[order]
    return [rows[ends[k] : ends[k + 1]] for k in range(num_classes)]
