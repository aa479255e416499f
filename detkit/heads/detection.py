"""From scores and boxes to detections: the threshold, the candidates of each class, suppression, and the limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import batched_nms, clip, group_order
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


class Candidates(NamedTuple):
    """Boxes that may become detections, of a batch of images, one image after the other.

    boxes: (C, 4), in the batch's pixels.
    scores: (C,).
    labels: int64 (C,), from 1.
    image: int64 (C,), the number of each one's image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor

    def cpu(self) -> Candidates:
        """The same on the CPU, with one wait for the device."""
        columns = (self.scores, self.labels, self.image)
        rows = torch.cat([self.boxes, *(column[:, None].to(self.boxes) for column in columns)], dim=1).cpu()
        return Candidates(rows[:, :4], rows[:, 4], rows[:, 5].long(), rows[:, 6].long())


class Found(NamedTuple):
    """Detections of a batch of N images, one image after the other, best first in each.

    boxes, scores, labels, image: as `Candidates`, but the boxes are in the images' own pixels.
    rank: int64 (D,), of each one in its image, from 0; those beyond ``max_detections`` are still among them.
    counts: int64 (N,), how many there are of each image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    rank: Tensor
    counts: Tensor
    max_detections: int

    def per_image(self) -> list[Detections]:
        """The detections of each image."""
        counts = self.counts.tolist()
        images = zip(*(values.split(counts) for values in (self.boxes, self.scores, self.labels)), strict=True)
        names = ("boxes", "scores", "labels")
        return [
            Detections({k: v[: self.max_detections] for k, v in zip(names, fields, strict=True)}) for fields in images
        ]

    def limited(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, scores, labels and images of all, without those beyond the limit."""
        (rows,) = torch.where(self.rank < self.max_detections)
        return self.boxes[rows], self.scores[rows], self.labels[rows], self.image[rows]


def candidates(scores: Tensor, image: Tensor, images: int, settings: DetectionSettings) -> tuple[Tensor, Tensor]:
    """The rows (C,) and classes (C,), from 0, of scores (R, K) without background that enter suppression; int64.

    ``image`` (R,) is the number of each row's image, of ``images``.
    """
    good = scores > settings.score_threshold
    if settings.max_candidates is not None:
        best = torch.zeros_like(good)
        for i in range(images):
            own = scores.masked_fill(image[:, None] != i, -torch.inf)
            rows = own.topk(torch.sym_min(settings.max_candidates, scores.shape[0]), dim=0).indices
            best |= torch.zeros_like(good).scatter(0, rows, True) & (image == i)[:, None]
        good = good & best
    rows, classes = torch.where(good)
    return rows, classes


def suppress(found: Candidates, images: ImageBatch, settings: DetectionSettings, min_size: float) -> Found:
    """The detections of all images, in their own pixels, on the CPU.

    What is left to do is little, and each step of it would make the host wait for a device: so it is done on the CPU.

    Args:
        found: of all images.
        images: the batch.
        settings: the IoU of suppression and the limit.
        min_size: boxes with a shorter side, in the batch's pixels, are dropped once they are clipped to the image.
    """
    found = found.cpu()
    count = images.tensor.shape[0]
    boxes = clip(found.boxes, images.limits()[found.image])
    (large,) = torch.where(((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(1))
    boxes, scores, labels, image = boxes[large], *(each[large] for each in found[1:])
    keep = batched_nms(boxes, scores, labels * count + image, settings.nms_threshold)
    keep = keep[group_order(image[keep])]
    image = image[keep]
    counts = (image[:, None] == torch.arange(count)).sum(0)
    rank = torch.arange(image.shape[0]) - (counts.cumsum(0) - counts)[image]
    boxes = boxes[keep] / images.scales()[image]
    return Found(boxes, scores[keep], labels[keep], image, rank, counts, settings.max_detections)
