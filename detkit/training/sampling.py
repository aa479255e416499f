"""Which boxes learn, and what: matching them to ground truth, and sampling a few of them.

Shapes: G ground truths, N boxes (anchors or proposals), I ignore boxes. Every step has a fixed shape: no boolean
indexing, so the device is never waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import box_ioa, box_iou
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


def ignore_background(matches: Matches, boxes: Tensor, ignore_boxes: Tensor, threshold: float = 0.5) -> Matches:
    """Take background inside ignore boxes out of training: its label becomes -1.

    Args:
        matches: of ``boxes``.
        boxes: (N, 4), anchors or proposals.
        ignore_boxes: (I, 4), crowds and difficult objects, whose pixels are not background either.
        threshold: a box is inside when at least this share of its area lies in one ignore box.
    """
    if ignore_boxes.shape[0] == 0:
        return matches
    inside = box_ioa(boxes, ignore_boxes).amax(dim=1) >= threshold
    label = torch.where(inside & (matches.label == 0), torch.full_like(matches.label, -1), matches.label)
    return matches._replace(label=label)


class Samples(NamedTuple):
    """A sample of fixed size n, foreground first, then background, then padding.

    index: int64 (n,), rows of what was sampled; in the padding any row, possibly twice.
    positive: bool (n,), foreground.
    valid: bool (n,), False for the padding at the end.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor


def sample(
    labels: Tensor, batch_size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Samples:
    """Draws n = min(batch_size, N) of N boxes at random, without replacement.

    labels: int64 (N,), above 0 foreground, 0 background, -1 never drawn. At most
    int(batch_size * positive_fraction) are foreground; background fills what is left
    (anchor_target_layer.py and proposal_target_layer.py, papers.md 2.3). Where there is too little
    of it the rest is marked not valid, so that the size never depends on the data and the
    device is never waited for.

    generator: a source of randomness on the device of `labels`; None takes torch's own.
    """
    total = labels.shape[0]
    size = min(batch_size, total)
    most_positive = min(int(batch_size * positive_fraction), size)
    key = torch.rand(total, generator=generator, device=labels.device)
    # Those that must not be drawn get a key below every other: they come last, and can be told.
    foreground_key, foreground = torch.where(labels > 0, key, -1.0).topk(most_positive)
    background_key, background = torch.where(labels == 0, key, -1.0).topk(size)

    position = torch.arange(size, device=labels.device)
    positives = (foreground_key >= 0).sum()
    positive = position < positives
    from_background = (position - positives).clamp(min=0)
    valid = positive | (background_key[from_background] >= 0)
    # Positives are at most `most_positive`, so the padding is never chosen.
    foreground = torch.cat((foreground, foreground.new_zeros(size - most_positive)))
    index = torch.where(positive, foreground, background[from_background])
    return Samples(index, positive, valid)


@torch.no_grad()
def sample_batch(
    proposals: list[Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    ignore_boxes: list[Tensor],
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
        ignore_boxes: N tensors (I_i, 4) in which background is not trained on.
        foreground_iou: regions from this IoU with a box are foreground, of the class of the one they overlap most.
        batch_size: regions of all images together.
        positive_fraction: at most this share of them foreground.

    Returns:
        N tensors of regions (n_i, 4), and the classes (R,) of all of them in this order, 0 for background.
    """
    candidates, classes, kinds = [], [], []
    for given, truth, names, ignored in zip(proposals, boxes, labels, ignore_boxes, strict=True):
        rows = torch.cat([truth, given])
        matches = match(box_iou(truth, rows), foreground_iou, foreground_iou, low_quality=False)
        matches = ignore_background(matches, rows, ignored)
        known = names[matches.index] if len(names) else matches.index
        candidates.append(rows)
        classes.append(torch.where(matches.label > 0, known, 0))
        kinds.append(matches.label)
    chosen = sample(torch.cat(kinds), batch_size, positive_fraction)
    rows = chosen.index[chosen.valid].sort().values
    counts = torch.tensor([len(c) for c in candidates], device=rows.device)
    per_image = torch.bincount(torch.repeat_interleave(counts)[rows], minlength=len(candidates)).tolist()
    return list(torch.cat(candidates)[rows].split(per_image)), torch.cat(classes)[rows]
