"""Non-maximum suppression, of one set of boxes or of many groups at once.

The kernel is torchvision's. What is added is its contract: any float type, empty input, and
no Python branch on data or sizes, so that torch.export can follow with any N.

Both functions compute in float64. Groups are kept apart by shifting each to a place of its
own; in float32 the shift costs the fraction bits of the coordinates, and boxes near the threshold
fall differently than they would alone. In float64 nothing is lost, and one group or many,
the same boxes are kept. (float64 is also what autocast leaves alone.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms as _kernel

# torchvision tells torch.export that its kernel keeps two boxes at least, and an exported program
# then stops where fewer are left. So two empty boxes go along: they overlap nothing, score
# least, are kept as the last two, and are cut off again.
_ALONG = 2


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices (int64) of the boxes kept, best score first.

    A box goes when its IoU with a kept box of a better score is above `iou_threshold`
    (strictly, as in the papers). Equal scores keep their order. boxes (N, 4) finite, scores (N,).
    """
    boxes = torch.cat((boxes.double(), boxes.new_zeros((_ALONG, 4), dtype=torch.float64)))
    scores = torch.cat((scores.double(), scores.new_full((_ALONG,), -torch.inf, dtype=torch.float64)))
    return _kernel(boxes, scores, iou_threshold)[:-_ALONG]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As `nms`, but boxes suppress only those of their own group (class, level or image).

    groups (N,) are integers of any value. Equal to `nms` run on each group, the kept
    indices then sorted by score; where scores are equal, earlier boxes come first.
    """
    boxes = boxes.double()
    # The extra zero gives the extremes of an empty set a value, without a branch.
    ends = torch.cat((boxes.flatten(), boxes.new_zeros(1)))
    # A whole number, so that the product below and (for all but tiny coordinates) the sum are exact.
    apart = (ends.max() - ends.min()).ceil() + 1
    return nms(boxes + (groups.double() * apart)[:, None], scores, iou_threshold)
