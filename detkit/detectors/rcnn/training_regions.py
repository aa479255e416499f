"""The regions of a training split as R-CNN's SVMs and box regressors learn them. No pixel is read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import box_ioa, box_iou
from detkit.data import Annotations
from detkit.heads import regression_examples


class ImageRegions(NamedTuple):
    """The regions of one image, ground truth first (as the authors' roidb_from_voc.m has them).

    boxes: (R, 4) in the image's pixels; the first G are its ground truth.
    labels: int64 (G,) from 1 to K.
    overlaps: (R, K), the largest IoU with an object of each class; of a crowd, the share that lies in it.
    examples: int64 (E,), rows that a box regressor learns from.
    targets: (E, 4), what they are to become, see `detkit.heads.regression_examples`.
    classes: int64 (E,), whose regressor learns from them.
    """

    boxes: Tensor
    labels: Tensor
    overlaps: Tensor
    examples: Tensor
    targets: Tensor
    classes: Tensor


class TrainingRegions:
    """`ImageRegions` by the image's place in its split.

    Args:
        annotations: the split.
        proposals: image_id -> boxes (P, 4), best first.
        num_classes: K.
        max_proposals: best proposals of an image that are used; None: all.
        train_on_difficult: difficult objects are positives too; otherwise what overlaps them is nobody's negative.
        min_iou: proposals above this IoU are examples for the box regressors.
        count: how many images, the split's first; None: all.
    """

    def __init__(
        self,
        annotations: Annotations,
        proposals: Mapping[str | int, object],
        num_classes: int,
        max_proposals: int | None,
        train_on_difficult: bool,
        min_iou: float,
        count: int | None = None,
    ) -> None:
        self.annotations, self.proposals, self.num_classes = annotations, proposals, num_classes
        self.max_proposals, self.train_on_difficult, self.min_iou = max_proposals, train_on_difficult, min_iou
        self.count = len(annotations) if count is None else min(count, len(annotations))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ImageRegions:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        truth = {name: torch.from_numpy(value) for name, value in self.annotations.fields(index).items()}
        learnt = ~(truth["crowd"] if self.train_on_difficult else truth["crowd"] | truth["difficult"])
        given = torch.as_tensor(self.proposals[self.annotations.image_id(index)], dtype=torch.float32).reshape(-1, 4)
        objects, labels = truth["boxes"][learnt], truth["labels"][learnt]
        boxes = torch.cat([objects, given[: self.max_proposals]])
        covered = torch.where(truth["crowd"][:, None], box_ioa(boxes, truth["boxes"]).T, box_iou(truth["boxes"], boxes))
        overlaps = torch.zeros(self.num_classes, len(boxes))
        overlaps.scatter_reduce_(0, (truth["labels"] - 1)[:, None].expand_as(covered), covered, "amax")
        examples, targets, classes = regression_examples(boxes, objects, labels, self.min_iou)
        return ImageRegions(boxes, labels, overlaps.T.contiguous(), examples, targets, classes)
