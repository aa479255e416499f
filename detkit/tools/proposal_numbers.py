"""What `detkit propose` says at the end: how many boxes there are, and how many of the objects they cover."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detkit.data.annotations import Annotations
    from detkit.evaluation.proposal_recall import Recall
    from detkit.proposals.store import ProposalStore

CHUNK = 1_000_000  # proposals that are looked at together: 32 MB


def print_numbers(store: ProposalStore, annotations: Annotations, num_classes: int, seconds: float | None) -> None:
    """Prints counts, time, size, recall and the place.

    Args:
        store: of the proposals.
        annotations: of the same images.
        num_classes: classes without background.
        seconds: that computing took; None if the store was there already.
    """
    counts = store.counts[rows_of(store, annotations)]
    spread = f"{counts.mean():,.0f} boxes an image ({counts.min():,} to {counts.max():,})"
    without = f", {(counts == 0).sum():,} without any" if (counts == 0).any() else ""
    size = f"{os.path.getsize(store.path) / 1e6:,.1f} MB"
    made = "already there" if seconds is None else f"in {seconds:,.1f} s"
    print(f"{len(annotations):,} images, {spread}{without}; {made}, {size}")
    recall, objects = recall_of(store, annotations, num_classes)
    if objects:
        print(
            f"recall {recall.recall_50[0]:.3f} at IoU 0.5, {recall.recall_70[0]:.3f} at 0.7; MABO {recall.mabo[0]:.3f} "
            f"({objects:,} objects; difficult and crowd are not counted)"
        )
    print(f"proposals: {store.path}", flush=True)


def recall_of(store: ProposalStore, annotations: Annotations, num_classes: int) -> tuple[Recall, int]:
    """Recall of all boxes of a store, and of how many objects.

    Args:
        store: with proposals for all images of the split.
        annotations: the split.
        num_classes: classes without background.
    """
    from detkit.evaluation.proposal_recall import best_overlaps, summarise

    rows = rows_of(store, annotations)
    counts, boxes = store.counts[rows], annotations.boxes.astype(np.float64)
    most = [max(int(counts.max(initial=1)), 1)]
    best = np.zeros((len(boxes), 1))
    first = 0
    while first < len(rows):
        last = first + max(1, int(np.searchsorted(np.cumsum(counts[first:]), CHUNK)))
        found = np.concatenate([store.boxes_at(row) for row in rows[first:last]]).astype(np.float64)
        part = slice(annotations.offsets[first], annotations.offsets[min(last, len(rows))])
        best[part] = best_overlaps(
            _sides(boxes[part]),
            annotations.offsets[first : last + 1] - annotations.offsets[first],
            _sides(found),
            np.concatenate([[0], np.cumsum(counts[first:last])]),
            most,
        )
        first = last
    wanted = ~(annotations.difficult | annotations.crowd)
    labels = annotations.labels[wanted].astype(np.int32)
    return summarise(best[wanted], labels, num_classes, (0.5, 0.7)), int(wanted.sum())


def rows_of(store: ProposalStore, annotations: Annotations) -> np.ndarray:
    """(I,) int64: the place in the store of each image of the split."""
    if np.array_equal(store.image_ids, annotations.image_ids):
        return np.arange(len(store))
    place = {image_id: row for row, image_id in enumerate(store)}
    return np.array([place[image_id] for image_id in annotations.image_ids.tolist()], np.int64)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
