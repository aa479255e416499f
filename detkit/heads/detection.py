"""From scores and boxes to detections: the threshold, the candidates of each class, suppression, and the limit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.boxes import batched_nms, clip
from detkit.boxes.geometry import best_first
from detkit.features.preprocessing import ImageBatch
from detkit.settings import check_range
from detkit.types import Detections


@dataclass(frozen=True)
class DetectionSettings:
    """Which scored boxes of an image become detections (papers.md 2.1, 2.2, 2.5).

    Args:
        score_threshold: detections need a higher score, 0 to 1.
        max_candidates: best detections of each class and image that enter suppression, 100 in R-CNN and Fast R-CNN;
            null: all.
        nms_threshold: IoU within a class above which the lower detection is suppressed.
        max_detections: of an image.
    """

    score_threshold: float = 0.05
    max_candidates: int | None = None
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_range("detection.score_threshold", self.score_threshold, 0, 1)
        check_range("detection.nms_threshold", self.nms_threshold, 0, 1)
        check_range("detection.max_candidates", self.max_candidates, 1)
        check_range("detection.max_detections", self.max_detections, 1)


def candidates(scores: Tensor, settings: DetectionSettings) -> tuple[Tensor, Tensor]:
    """The rows (C,) and classes (C,), from 0, of scores (R, K) without background that enter suppression; int64."""
    good = scores > settings.score_threshold
    if settings.max_candidates is not None:
        best = scores.topk(min(settings.max_candidates, len(scores)), dim=0).indices
        good &= torch.zeros_like(good).scatter(0, best, True)
    return torch.where(good)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: ImageBatch,
    index: int,
    settings: DetectionSettings,
    min_size: float,
) -> Detections:
    """The detections of one image, in its own pixels, best first.

    Args:
        boxes, scores, labels: (C, 4) in the batch's pixels, (C,), and (C,) from 1.
        images, index: the batch, and the image in it.
        settings: the IoU of suppression and the limit.
        min_size: boxes with a shorter side, in the batch's pixels, are dropped once they are clipped to the image.
    """
    boxes = clip(boxes, images.sizes[index])
    (large,) = torch.where(((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(1))
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    keep = batched_nms(boxes, scores, labels, settings.nms_threshold).sort().values
    keep = keep[best_first(scores[keep], len(scores))[: settings.max_detections]]
    return Detections({"boxes": images.to_original(boxes[keep], index), "scores": scores[keep], "labels": labels[keep]})
