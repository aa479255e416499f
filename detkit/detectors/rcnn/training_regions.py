"""The regions of a training split from which R-CNN's SVMs and box regressors learn. No pixel is read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.boxes import box_ioa, box_iou
from detkit.data import Annotations
from detkit.heads import regression_examples


class ImageRegions(NamedTuple):
    """The regions of one image, ground truth first (as in the authors' roidb_from_voc.m).

    boxes: (R, 4) in the image's pixels; the first G are its ground truth.
    labels: int64 (G,) from 1 to K.
    overlaps: (R, K), the largest IoU with an object of each class; for a crowd, the share of the region inside it.
    examples: int64 (E,), rows from which a box regressor learns.
    targets: (E, 4), their regression targets, see `detkit.heads.regression_examples`.
    classes: int64 (E,), the class whose regressor learns from each.
    """

    boxes: Tensor
    labels: Tensor
    overlaps: Tensor
    examples: Tensor
    targets: Tensor
    classes: Tensor


@dataclass(frozen=True)
class TrainingRegions:
    """`ImageRegions` by the image's index in its split.

    Args:
        annotations: the split.
        proposals: image_id -> boxes (P, 4), best first, of which ``max_proposals`` are used.
        num_classes: K.
        train_on_difficult: difficult objects are positives too; otherwise regions that overlap them are neither
            positive nor negative.
        min_iou: proposals above this IoU are examples for the box regressors.
        count: number of images, from the first one; None: all.
    """

    annotations: Annotations
    proposals: Mapping[str | int, object]
    num_classes: int
    max_proposals: int | None
    train_on_difficult: bool
    min_iou: float
    count: int | None = None

    def __len__(self) -> int:
        return len(self.annotations) if self.count is None else min(self.count, len(self.annotations))

    def __iter__(self) -> Iterator[ImageRegions]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> ImageRegions:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        truth = {name: torch.from_numpy(value) for name, value in self.annotations.fields(index).items()}
        ignored = truth["crowd"] if self.train_on_difficult else truth["crowd"] | truth["difficult"]
        objects, labels = truth["boxes"][~ignored], truth["labels"][~ignored]
        given = torch.as_tensor(self.proposals[self.annotations.image_id(index)], dtype=torch.float32).reshape(-1, 4)
        boxes = torch.cat([objects, given[: self.max_proposals]])
        iou = torch.where(truth["crowd"][:, None], box_ioa(boxes, truth["boxes"]).T, box_iou(truth["boxes"], boxes))
        overlaps = torch.zeros(self.num_classes, len(boxes))
        overlaps.scatter_reduce_(0, (truth["labels"] - 1)[:, None].expand_as(iou), iou, "amax")
        examples, targets, classes = regression_examples(boxes, objects, labels, self.min_iou)
        return ImageRegions(boxes, labels, overlaps.T.contiguous(), examples, targets, classes)

    def counts(self) -> np.ndarray:
        """The numbers of regions, of objects and of regression examples of each image, int64 (images, 3)."""
        counts = [(len(r.boxes), len(r.labels), len(r.examples)) for r in self]
        return np.array(counts, np.int64).reshape(-1, 3)
