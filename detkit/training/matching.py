"""Matching: which ground truth each box stands for, and whether it is foreground.

Shapes: G ground truths, N boxes (anchors or proposals), R regions. Every step has a fixed
shape: no boolean indexing, so the device is never waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import box_ioa
from detkit.errors import ConfigError


class Matches(NamedTuple):
    """What `match` found for each of N boxes.

    index: int64 (N,), the ground truth of the best IoU (0 where there is none).
    label: int64 (N,), 1 foreground, 0 background, -1 neither: not to be trained on.
    iou: float (N,), that best IoU (0 where there is no ground truth).
    """

    index: Tensor
    label: Tensor
    iou: Tensor


def match(iou: Tensor, positive: float, negative: float, low_quality: bool) -> Matches:
    """Matches boxes to ground truths by their IoU (G, N).

    Foreground has a best IoU >= `positive`, background one < `negative`; between them a box is
    neither. With `low_quality`, every box that ties the best IoU of some ground truth becomes
    foreground too, if that best is above 0; it keeps the ground truth of its own best IoU
    (anchor_target_layer.py, papers.md 2.3). Both G and N may be 0.

    Raises ConfigError if `positive` is below `negative`.
    """
    if positive < negative:
        raise ConfigError(f"matching thresholds: positive ({positive}) must not be below negative ({negative})")
    truths, boxes = iou.shape
    if truths == 0 or boxes == 0:
        zeros = torch.zeros(boxes, dtype=torch.int64, device=iou.device)
        return Matches(zeros, zeros.clone(), iou.new_zeros(boxes))
    best, index = iou.max(dim=0)
    label = (best >= positive).long() - ((best >= negative) & (best < positive)).long()
    if low_quality:
        # Exact equality, as in the authors' code: the values compared are the same computed numbers.
        best_of_truth = iou.amax(dim=1, keepdim=True)
        forced = ((iou == best_of_truth) & (best_of_truth > 0)).any(dim=0)
        label = torch.where(forced, torch.ones_like(label), label)
    return Matches(index, label, best)


def ignore_in_regions(matches: Matches, boxes: Tensor, regions: Tensor, threshold: float = 0.5) -> Matches:
    """Takes background inside `regions` (R, 4) out of training: its label becomes -1.

    For crowds and difficult objects, whose pixels are not background either. A box counts as
    inside when at least `threshold` of its area is in any one region. boxes (N, 4) are those that were matched.
    """
    if regions.shape[0] == 0:
        return matches
    inside = box_ioa(boxes, regions).amax(dim=1) >= threshold
    label = torch.where(inside & (matches.label == 0), torch.full_like(matches.label, -1), matches.label)
    return matches._replace(label=label)
