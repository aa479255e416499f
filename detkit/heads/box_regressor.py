"""R-CNN's box regression: ridge regression of each class from a region's features (Girshick et al. 2014, appendix C).

Boxes are half-open with width x2 - x1; the authors (papers.md 2.1) take x2 - x1 of inclusive corners, one pixel less.
Shape letters: K classes, D features, R regions, P proposals and G ground-truth boxes of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.boxes import BoxCodec, box_iou
from detkit.errors import ConfigError
from detkit.heads.ridge import Ridge
from detkit.settings import check_range

#: The paper's targets; no limit on the growth of a box.
CODEC = BoxCodec(clamp=math.inf)


@dataclass(frozen=True)
class BoxRegressorSettings:
    """How R-CNN's box regressors learn.

    Args:
        min_iou: they learn from proposals with a larger IoU with their object, 0.6 in the paper.
        ridge: penalty on the squared weights, 1000 in the paper.
    """

    min_iou: float = 0.6
    ridge: float = 1000.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_iou < 1:
            raise ConfigError(f"box.min_iou: {self.min_iou} must be at least 0 and below 1")
        check_range("box.ridge", self.ridge, 0, open_low=True)


class BoxRegressors(nn.Module):
    """The regressors of all classes, K without background, from D features; buffers: nothing learns by gradients."""

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

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Refine each box by the regressor of each class; classes without one leave it unchanged.

        Args:
            x: features (R, D) as the network gives them.
            boxes: (R, 4), in pixels.

        Returns:
            float32 (R, K, 4), not clipped.
        """
        boxes = boxes.float()[:, None]
        with torch.autocast(x.device.type, enabled=False):
            whitened = torch.einsum("rd,kdt->rkt", x.float() * self.scale, self.weight.float()) + self.bias.float()
            deltas = torch.einsum("rkt,ktu->rku", whitened, self.inverse.float()) + self.mean.float()
            moved = CODEC.decode(deltas, boxes)
        return torch.where(self.trained[:, None], moved, boxes)

    def set(self, label: int, ridge: Ridge) -> None:
        """Set the regressor of class `label` (1 to K), learned from features that were multiplied by `scale`."""
        for name, value in ridge._asdict().items():
            getattr(self, name)[label - 1] = value
        self.trained[label - 1] = True


def regression_examples(
    proposals: Tensor, boxes: Tensor, labels: Tensor, min_iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each proposal is matched to the object of the largest IoU, of any class.

    Ground-truth boxes among the proposals count too, as in the authors' code.

    Args:
        proposals: (P, 4), in pixels.
        boxes, labels: ground truth (G, 4) and (G,).
        min_iou: see `BoxRegressorSettings`.

    Returns:
        The rows of the proposals that are examples, ascending, int64 (n,); their targets (dx, dy, dw, dh), float32
        (n, 4); and the class of each example's object, (n,).
    """
    if len(boxes) == 0:
        return labels.new_zeros(0), proposals.new_zeros(0, 4), labels.new_zeros(0)
    iou, nearest = box_iou(proposals, boxes).max(dim=1)
    rows = torch.where(iou > min_iou)[0]
    nearest = nearest[rows]
    targets = CODEC.encode(boxes[nearest].double(), proposals[rows].double()).float()
    return rows, targets, labels[nearest]
