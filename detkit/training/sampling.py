"""Which boxes learn, and what: they are matched to the ground truth, and a few of them are sampled.

Shape letters: G ground truths, N boxes (anchors or proposals), I ignore boxes. All shapes are fixed: there is no
boolean indexing, so that the device is never waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import box_ioa, box_iou
from detkit.errors import ConfigError

#: Background of which this share lies in an ignore box is not trained on.
IGNORE_THRESHOLD = 0.5


class Matches(NamedTuple):
    """Result of `match` for each of N boxes.

    Attributes:
        index: int64 (N,), the ground truth of the best IoU (0 where there is none).
        label: int64 (N,), 1 foreground, 0 background, -1 neither: not trained on.
        iou: float (N,), that best IoU (0 where there is no ground truth).
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple's own method
    label: Tensor
    iou: Tensor


def match(iou: Tensor, positive: float, negative: float, low_quality: bool) -> Matches:
    """Match boxes to ground truths by their IoU.

    With ``positive`` 0.7 and ``negative`` 0.3 a box whose best IoU is 0.8 is foreground, 0.5 neither, 0.2 background.

    Args:
        iou: (G, N); both may be 0.
        positive: boxes with a best IoU from this on are foreground.
        negative: boxes with a best IoU below this are background; between the two they are neither.
        low_quality: each box that has the best IoU of some ground truth, or ties with it, is foreground too, if that
            IoU is above 0; it keeps the ground truth of its own best IoU (anchor_target_layer.py, papers.md 2.3).

    Raises:
        ConfigError: ``positive`` is below ``negative``.
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


def ignore_background(
    matches: Matches, boxes: Tensor, ignore_boxes: Tensor, threshold: float = IGNORE_THRESHOLD
) -> Matches:
    """Set the label of background in ignore boxes to -1: crowds and difficult objects are no background either.

    ``matches`` are those of ``boxes`` (N, 4), of which one is in an ignore box (I, 4) if ``threshold`` of its area is.
    """
    if ignore_boxes.shape[0] == 0:
        return matches
    inside = box_ioa(boxes, ignore_boxes).amax(dim=1) >= threshold
    label = torch.where(inside & (matches.label == 0), torch.full_like(matches.label, -1), matches.label)
    return matches._replace(label=label)


class Samples(NamedTuple):
    """A sample of fixed size n: foreground first, then background, then padding.

    Attributes:
        index: int64 (n,), rows of what was sampled; in the padding any rows, possibly repeated.
        positive: bool (n,), foreground.
        valid: bool (n,), False in the padding.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple's own method
    positive: Tensor
    valid: Tensor


def sample(
    labels: Tensor, batch_size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Samples:
    """Draw n = min(batch_size, N) of N boxes at random, without replacement.

    Where there is too little background, the sample is padded: its size does not depend on the data, and the device is
    never waited for (anchor_target_layer.py and proposal_target_layer.py, papers.md 2.3).

    Args:
        labels: int64 (N,), above 0 foreground, 0 background, -1 never drawn.
        batch_size: at least 1.
        positive_fraction: at most int(batch_size * positive_fraction) are foreground; background fills the rest.
        generator: source of randomness on the device of ``labels``; None: torch's own.
    """
    total = labels.shape[0]
    size = min(batch_size, total)
    most_positive = min(int(batch_size * positive_fraction), size)
    key = torch.rand(total, generator=generator, device=labels.device)
    # Boxes that must not be drawn get a key below every other: they come last and can be recognised.
    foreground_key, foreground = torch.where(labels > 0, key, -1.0).topk(most_positive)
    background_key, background = torch.where(labels == 0, key, -1.0).topk(size)

    position = torch.arange(size, device=labels.device)
    positives = (foreground_key >= 0).sum()
    positive = position < positives
    from_background = (position - positives).clamp(min=0)
    valid = positive | (background_key[from_background] >= 0)
    # There are at most `most_positive` positives, so that the padding of `foreground` is never selected.
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
    """Draw boxes of N images together, as R-CNN's fine-tuning does (Girshick et al. 2014, section 2.3).

    The paper draws its 128 from all windows of the training set; here they are of the batch's images, so that a step
    reads few images. The ground truth is joined to the proposals. Too little background gives a shorter sample.

    Args:
        proposals: N tensors (P_i, 4).
        boxes: N tensors (G_i, 4), the ground truth.
        labels: N tensors (G_i,), from 1 to K.
        ignore_boxes: N tensors (I_i, 4); background in them is not drawn, see `ignore_background`.
        foreground_iou: boxes from this IoU with a ground truth are foreground, of the class of the one with most.
        batch_size: boxes of all images together.
        positive_fraction: at most this share of them is foreground.

    Returns:
        N tensors (n_i, 4), and the classes (sum of n_i,) of all of them in this order, 0 for background.
    """
    candidates, classes, matched = [], [], []
    for given, truth, truth_labels, ignored in zip(proposals, boxes, labels, ignore_boxes, strict=True):
        rows = torch.cat([truth, given])
        matches = match(box_iou(truth, rows), foreground_iou, foreground_iou, low_quality=False)
        matches = ignore_background(matches, rows, ignored)
        nearest = truth_labels[matches.index] if len(truth_labels) else matches.index
        candidates.append(rows)
        classes.append(torch.where(matches.label > 0, nearest, 0))
        matched.append(matches.label)
    drawn = sample(torch.cat(matched), batch_size, positive_fraction)
    # The one wait for the device; what depends on the number of rows is done on the host.
    rows = torch.where(drawn.valid, drawn.index, -1).cpu()
    rows = rows[rows >= 0].sort().values
    image = torch.repeat_interleave(torch.tensor([len(c) for c in candidates]))
    per_image = torch.bincount(image[rows], minlength=len(candidates)).tolist()
    rows = rows.to(drawn.index.device, non_blocking=True)
    return list(torch.cat(candidates)[rows].split(per_image)), torch.cat(classes)[rows]
