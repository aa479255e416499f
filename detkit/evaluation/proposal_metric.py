"""Proposal recall, on any number of ranks: the same units for selective search, sliding windows and an RPN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.errors import DataError
from detkit.evaluation.coco import IOU_THRESHOLDS
from detkit.evaluation.evaluation_set import first_of_each
from detkit.evaluation.image_metric import ImageMetric, collect, image_name
from detkit.evaluation.proposal_recall import COUNTS, best_overlaps, check_settings, summarise


class ImageOverlaps(NamedTuple):
    """What is kept of an image: of its n objects that count, their labels (n,) and best IoUs (n, C)."""

    image_id: int | str | None
    labels: np.ndarray
    best: np.ndarray
    num_proposals: int


class ProposalRecall(ImageMetric):
    """Recall of proposals; `update` with each batch, `compute` at the end, `reset` before the next.

    Only the best overlap of each object is kept: thousands of proposals of each image take no memory.

    Args:
        class_names: the classes without background, in the order of their labels; labels beyond them are refused.
            None: those of the labels that occur.
        counts: C numbers of proposals of an image, ascending.
        iou_thresholds: T, above 0 and up to 1; average recall is the mean over them.
        process_group: the ranks that evaluate together; None for all.

    Raises:
        ConfigError: for counts or thresholds that are none.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        counts: Sequence[int] = COUNTS,
        iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
        process_group: Any | None = None,
    ) -> None:
        check_settings(counts, iou_thresholds)
        super().__init__(class_names, process_group)
        self.counts = tuple(counts)
        self.iou_thresholds = tuple(iou_thresholds)

    def update(self, proposals: Sequence[Tensor | Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch of images.

        Args:
            proposals: for each image boxes (P, 4), x1 y1 x2 y2 in its pixels, the best first; or a dict with `boxes`
                and, where they are not in order, `scores` (P,).
            targets: Samples: `boxes` and `labels`, and where they are known `difficult` and `crowd` (these objects need
                not be found) and `image_id` (one that was seen before does not count again).

        Raises:
            DataError: with the image's id, for what is missing, of the wrong shape or not finite; then nothing of the
                batch is kept.
        """
        if len(proposals) != len(targets):
            raise DataError(f"proposals of {len(proposals)} images for {len(targets)} targets: give one of each")
        boxes = [self._best(*pair) for pair in zip(proposals, targets, strict=True)]
        found = [{"boxes": b, "scores": torch.zeros(len(b)), "labels": torch.ones(len(b))} for b in boxes]
        batch = collect(found, targets, self.num_classes)
        best = best_overlaps(
            batch.boxes, batch.object_offsets, batch.detected_boxes, batch.detection_offsets, self.counts
        )
        part = []
        for i, image_id in enumerate(batch.image_ids):
            rows = slice(batch.object_offsets[i], batch.object_offsets[i + 1])
            kept = ~batch.ignored[rows]
            part.append(ImageOverlaps(image_id, batch.labels[rows][kept], best[rows][kept], len(boxes[i])))
        self.parts.append(part)

    def compute(self) -> dict[str, Any]:
        """The numbers of all ranks' images; float64 on the CPU, NaN for nothing to count. Each rank has to call it.

        counts (C,) and iou_thresholds (T,); recall (T, C), average_recall, recall_50, recall_70 and mabo (C,), and
        abo (K, C), as in `Recall`; classes (K,) int64, the labels that abo is in the order of; num_proposals (C,), how
        many an image has on average at each count; num_images and num_objects that were counted.
        """
        images = self.gathered()
        labels = np.concatenate([np.zeros(0, np.int32), *(image.labels for image in images)])
        best = np.concatenate([np.zeros((0, len(self.counts))), *(image.best for image in images)])
        if self.num_classes is None:
            classes, labels = np.unique(labels, return_inverse=True)
            labels = labels + 1
        else:
            classes = np.arange(1, self.num_classes + 1)
        given = np.array([image.num_proposals for image in images], np.float64)
        average = np.minimum(given[:, None], self.counts).mean(axis=0) if images else np.full(len(self.counts), np.nan)
        recall = summarise(best, labels, len(classes), self.iou_thresholds)
        numbers = recall._asdict() | {"iou_thresholds": self.iou_thresholds, "num_proposals": average}
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in numbers.items()} | {
            "counts": torch.tensor(self.counts),
            "classes": torch.as_tensor(classes, dtype=torch.int64),
            "num_images": len(images),
            "num_objects": len(labels),
        }

    def _best(self, proposals: Tensor | Mapping[str, Any], target: Mapping[str, Any]) -> Tensor:
        """The largest number of proposals that is asked for, best first, checked."""
        where = image_name(target.get("image_id"))
        given = proposals if isinstance(proposals, Mapping) else {"boxes": proposals}
        if "boxes" not in given:
            raise DataError(f"{where}: proposals have no 'boxes': give them, of shape (0, 4) for none")
        boxes = torch.as_tensor(given["boxes"]).detach()
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"{where}: proposals of shape {tuple(boxes.shape)}: give (P, 4), and (0, 4) for none")
        if not boxes.isfinite().all():
            raise DataError(f"{where}: proposals that are not finite: look for NaN or infinity where they are made")
        if given.get("scores") is not None:
            scores = torch.as_tensor(given["scores"]).detach()
            if scores.shape != boxes.shape[:1]:
                raise DataError(
                    f"{where}: {len(boxes)} proposals but scores of shape {tuple(scores.shape)}: give one each"
                )
            boxes = boxes[scores.argsort(descending=True, stable=True)]
        return boxes[: self.counts[-1]]

    @staticmethod
    def merge(parts: Sequence[list[ImageOverlaps]]) -> list[ImageOverlaps]:
        """Each image once."""
        images = [image for part in parts for image in part]
        return [images[number] for number in first_of_each([image.image_id for image in images])]
