"""Sampling over the images of a batch together, as R-CNN's fine-tuning does (Girshick et al. 2014, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.boxes import box_iou
from detkit.training.matching import ignore_in_regions, match
from detkit.training.sampling import sample

#: Background of which this share lies in a crowd or difficult region does not count.
IGNORE_THRESHOLD = 0.5


@torch.no_grad()
def sample_batch(
    proposals: list[Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    regions: list[Tensor],
    *,
    foreground_iou: float,
    batch_size: int,
    positive_fraction: float,
) -> tuple[list[Tensor], Tensor]:
    """Draws regions of N images, ground truth joined to the proposals, without replacement.

    The paper draws its 128 from all windows of the training set; here they are of the batch's images, so that one step
    reads a few images only. Too little background gives a shorter sample.

    Args:
        proposals: N tensors (P_i, 4).
        boxes, labels: N tensors (G_i, 4) and (G_i,) from 1 to K.
        regions: N tensors (R_i, 4) in which background does not count.
        foreground_iou: regions from this IoU with a box are foreground, of the class of the one they overlap most.
        batch_size: regions of all images together.
        positive_fraction: at most this share of them foreground.

    Returns:
        N tensors of regions (n_i, 4), and the classes (R,) of all of them in this order, 0 for background.
    """
    candidates, classes, kinds = [], [], []
    for given, truth, names, ignored in zip(proposals, boxes, labels, regions, strict=True):
        rows = torch.cat([truth, given])
        matches = match(box_iou(truth, rows), foreground_iou, foreground_iou, low_quality=False)
        matches = ignore_in_regions(matches, rows, ignored, IGNORE_THRESHOLD)
        known = names[matches.index] if len(names) else matches.index
        candidates.append(rows)
        classes.append(torch.where(matches.label > 0, known, 0))
        kinds.append(matches.label)
    chosen = sample(torch.cat(kinds), batch_size, positive_fraction)
    rows = chosen.index[chosen.valid].sort().values
    counts = torch.tensor([len(c) for c in candidates], device=rows.device)
    per_image = torch.bincount(torch.repeat_interleave(counts)[rows], minlength=len(candidates)).tolist()
    return list(torch.cat(candidates)[rows].split(per_image)), torch.cat(classes)[rows]
