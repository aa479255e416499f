"""Non-maximum suppression within groups of boxes, such as the classes and the images of a batch.

A box is suppressed where its IoU with a kept box of a better score is above the threshold (strictly, as in the papers).
It is computed in float64, which autocast leaves alone: an IoU of 0.3 is not above 0.3, as it is in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import ops

from detkit.boxes.geometry import box_iou

#: More boxes are not suppressed in one call on a device either, as in torchvision: it compares all pairs.
TOGETHER = 25_000


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes of one group.

    Args:
        boxes: (N, 4), finite.
        scores: (N,); of equal scores the earlier box is the better one.
        iou_threshold: 0 to 1.

    Returns:
        indices of the boxes that are kept, int64, best score first.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As `nms`, but boxes suppress only boxes of their own group: ``groups`` (N,) are integers of any value.

    The kept boxes of all groups are sorted by score, highest first; where scores are equal, earlier boxes come first.
    """
    keep = kept_by_nms(boxes, scores, groups, iou_threshold)
    return keep[scores[keep].argsort(descending=True, stable=True)]


class NMSStep(NamedTuple):
    """A step of `nms`: the best box that was left, and what it suppressed.

    kept: its index.
    suppressed: int64 (S,), the indices of the boxes that it suppressed, best score first.
    ious: float64 (S,), their IoU with it.
    """

    kept: int
    suppressed: Tensor
    ious: Tensor


def nms_steps(boxes: Tensor, scores: Tensor, iou_threshold: float) -> list[NMSStep]:
    """The steps of `nms`, to follow or to draw it; arguments as there. It compares all pairs of boxes at once.

    Returns:
        one step for each box that is kept, best score first. Every box is in one step, either kept or suppressed.
    """
    iou = box_iou(boxes.double(), boxes.double())
    left = scores.argsort(descending=True, stable=True)
    steps = []
    while len(left):
        best, others = left[0], left[1:]
        overlaps = iou[best, others]
        above = overlaps > iou_threshold
        steps.append(NMSStep(int(best), others[above], overlaps[above]))
        left = others[~above]
    return steps


def kept_by_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As `batched_nms`, but the indices are ascending.

    With a score of -inf callers leave a box out without a new shape: it suppresses none with another score. Whether it
    is kept itself is not defined.

    It is an operator of its own, ``detkit::kept_by_nms``, so that an exporter sees one operation: ONNX's takes
    classes, the kernel of torchvision does not.
    """
    return _kept_by_nms(boxes, scores, groups, iou_threshold)


@torch.library.custom_op("detkit::kept_by_nms", mutates_args=())
def _kept_by_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    apart = boxes.device.type == "cpu" or len(boxes) > TOGETHER
    return (one_by_one if apart else together)(boxes, scores, groups, iou_threshold)


@_kept_by_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    return groups.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def one_by_one(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`kept_by_nms` by torchvision's kernel for each group: on a CPU, and where there are many boxes."""
    rows = groups.argsort(stable=True)
    counts = groups[rows].unique_consecutive(return_counts=True)[1].tolist()
    boxes, scores = boxes.double(), scores.double()
    keep = [rows[:0], *(part[ops.nms(boxes[part], scores[part], iou_threshold)] for part in rows.split(counts))]
    return torch.cat(keep).sort().values


def together(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`kept_by_nms` by one call of torchvision's kernel: on a device, where each call makes the host wait.

    Boxes of different groups are moved apart. That is done in float64: in float32 it would cost fraction bits of the
    coordinates, so that other boxes would be kept.
    """
    boxes = boxes.double()
    # The extra zero gives the extremes of an empty set a value.
    ends = torch.cat((boxes.flatten(), boxes.new_zeros(1)))
    # A whole number, so that the product below and (for all but tiny coordinates) the sum are exact.
    offset = (ends.max() - ends.min()).ceil() + 1
    return ops.nms(boxes + (groups.double() * offset)[:, None], scores.double(), iou_threshold).sort().values


def group_order(groups: Tensor) -> Tensor:
    """The indices (N,) that sort ``groups`` (N,), integers from 0, ascending; the members of each keep their order.

    As ``groups.argsort(stable=True)``, but without ties: not every runtime of an exported graph sorts stably.
    """
    position = torch.arange(groups.shape[0], device=groups.device)
    return (groups * groups.shape[0] + position).argsort()
