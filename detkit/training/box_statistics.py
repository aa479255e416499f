"""Mean and deviation of each class's regression targets over a training set, as Fast R-CNN normalises them.

The authors' roidb.py:55-125 (papers.md 2.2): every region with an IoU of 0.5 and more is an example of its nearest
ground truth's class; the ground truth is among the regions; the variance is E[x^2] - E[x]^2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import BoxCodec, box_iou
from detkit.training.sampling import match

#: A deviation below this is replaced: almost all examples of the class are exact.
SMALLEST = 0.01
#: Deviations that are used if no class has examples that differ.
USUAL = (0.1, 0.1, 0.2, 0.2)


class BoxStatistics(NamedTuple):
    """Statistics of the deltas (dx, dy, dw, dh) of each class; row 0, background, has mean 0 and deviation 1.

    Attributes:
        mean: float32 (K + 1, 4).
        std: float32 (K + 1, 4), above 0.
        count: int64 (K + 1,), examples of each class.
    """

    mean: Tensor
    std: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple's own method


def box_statistics(
    images: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int,
    foreground_iou: float = 0.5,
    mirrored: bool = False,
) -> BoxStatistics:
    """Measure the targets of a training set.

    A class without examples has the mean and deviation of all classes together; a deviation below `SMALLEST` is
    replaced by that of all classes, too.

    Args:
        images: for each image proposals (P, 4), ground-truth boxes (G, 4) and their labels (G,) from 1 to K.
        num_classes: K.
        foreground_iou: regions from this IoU are examples.
        mirrored: the mirror image of each image counts too, as in the authors' doubled training set.
    """
    codec, sums = BoxCodec(), torch.zeros(num_classes + 1, 9, dtype=torch.float64)
    for proposals, boxes, labels in images:
        if len(boxes) == 0:
            continue
        regions = torch.cat([proposals, boxes])
        matches = match(box_iou(boxes, regions), foreground_iou, foreground_iou, low_quality=False)
        foreground = matches.label == 1
        nearest = matches.index[foreground]
        deltas = codec.encode(boxes[nearest], regions[foreground]).double()
        sums.index_add_(0, labels[nearest], torch.cat([deltas, deltas**2, torch.ones_like(deltas[:, :1])], dim=1))
    if mirrored:
        sums *= 2
        sums[:, 0] = 0  # every dx has its opposite
    mean, std = _moments(sums)
    mean_of_all, std_of_all = _moments(sums.sum(0))
    std_of_all = torch.where(std_of_all < SMALLEST, torch.tensor(USUAL, dtype=std.dtype), std_of_all)
    mean = torch.where(sums[:, 8:] > 0, mean, mean_of_all)
    std = torch.where(std < SMALLEST, std_of_all, std)
    mean[0], std[0] = 0, 1
    return BoxStatistics(mean.float(), std.float(), sums[:, 8].long())


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (..., 4) of sums, sums of squares and counts (..., 9); 0 where there is no example."""
    count = sums[..., 8:].clamp(min=1)
    mean = sums[..., :4] / count
    return mean, (sums[..., 4:8] / count - mean**2).clamp(min=0).sqrt()
