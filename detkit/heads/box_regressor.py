"""R-CNN's box regression: ridge regression of each class from a region's features (Girshick et al. 2014, appendix C).

What the authors' code does is told in papers.md 2.1. Here boxes are half-open and have their plain widths, where the
authors take x2 - x1 of inclusive corners, a pixel less.

Shape letters: K classes, D features, R regions, P proposals and G ground-truth boxes of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detkit.boxes import BoxCodec, box_iou
from detkit.heads.ridge import Ridge

#: The paper's targets; no limit on the growth of a box.
CODEC = BoxCodec(clamp=math.inf)


class BoxRegressors(nn.Module):
    """The regressions of all classes: buffers only, nothing here learns by gradients.

    Args:
        features: D.
        num_classes: K, without background.
    """

    weight: Tensor
    bias: Tensor
    inverse: Tensor
    mean: Tensor
    scale: Tensor
    trained: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, features, 4))
        self.register_buffer("bias", torch.zeros(num_classes, 4))
        self.register_buffer("inverse", torch.eye(4).repeat(num_classes, 1, 1))  # from whitened targets to targets
        self.register_buffer("mean", torch.zeros(num_classes, 4))  # of the targets
        self.register_buffer("scale", torch.ones(()))  # features are multiplied by it
        self.register_buffer("trained", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, x: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Move each box as its class's regression says; boxes of classes without one stay where they are.

        To be done once, after scoring and before suppression. Nothing is clipped.

        Args:
            x: features (R, D) as the network gives them.
            boxes: (R, 4), in pixels.
            labels: int64 (R,), 1 to K.

        Returns:
            float32 (R, 4).
        """
        k = labels - 1
        with torch.autocast(x.device.type, enabled=False):
            # The regressions of all classes at once: R x 4K numbers, where each region's own weights would be R x 4D.
            every = torch.einsum("rd,kdt->rkt", x.float() * self.scale, self.weight.float()) + self.bias.float()
            whitened = every[torch.arange(len(k), device=k.device), k]
            deltas = torch.einsum("rt,rtu->ru", whitened, self.inverse[k].float()) + self.mean[k].float()
            moved = CODEC.decode(deltas, boxes.float())
        return torch.where(self.trained[k, None], moved, boxes.float())

    def set(self, label: int, ridge: Ridge) -> None:
        """Give the class `label` (1 to K) its regression, learned from features that `scale` was applied to."""
        for name, value in ridge._asdict().items():
            getattr(self, name)[label - 1] = value
        self.trained[label - 1] = True


def regression_examples(
    proposals: Tensor, boxes: Tensor, labels: Tensor, min_iou: float = 0.6
) -> tuple[Tensor, Tensor, Tensor]:
    """What an image's proposals are to become: each goes to the object it overlaps most, of whatever class.

    Ground truth among the proposals is an example like the others, as it is in the authors' code.

    Args:
        proposals: (P, 4), in pixels.
        boxes, labels: ground truth (G, 4) and (G,).
        min_iou: proposals are examples with an IoU above it.

    Returns:
        Which proposals are examples, ascending, int64 (n,); their targets (dx, dy, dw, dh), float32 (n, 4); and the
        class of the object of each, (n,).
    """
    if len(boxes) == 0:
        return labels.new_zeros(0), proposals.new_zeros(0, 4), labels.new_zeros(0)
    iou, nearest = box_iou(proposals, boxes).max(dim=1)
    rows = torch.where(iou > min_iou)[0]
    nearest = nearest[rows]
    targets = CODEC.encode(boxes[nearest].double(), proposals[rows].double()).float()
    return rows, targets, labels[nearest]
