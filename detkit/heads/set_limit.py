"""R-CNN's limit on detections over a whole test set: the more certain a class is, the more it may keep of an image."""

from __future__ import annotations

import torch
from torch import Tensor


class SetLimit:
    """Knows the score that a class's detections must have to be among its best of a whole set.

    The authors' rcnn_test.m:44-91 keeps 40 boxes a class and image on average, before suppression, to save memory; what
    it leaves out is too uncertain to matter to AP. On several devices each limits what it has seen itself.

    Args:
        num_classes: K.
        per_image: boxes of a class kept for each image, on average.
    """

    def __init__(self, num_classes: int, per_image: int) -> None:
        self.num_classes, self.per_image, self.images = num_classes, per_image, 0
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def see(self, scores: Tensor, labels: Tensor) -> None:
        """Take in an image's candidates: scores (N,) and labels (N,) from 1 to K."""
        self.images += 1
        self._scores.append(scores.cpu())
        self._labels.append(labels.cpu())

    def keep(self, detections: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Each image's detections, on the CPU, without those beyond the limit; once all images have been seen."""
        thresholds = self.thresholds()
        good = [found["scores"] >= thresholds[found["labels"] - 1] for found in detections]
        return [{k: v[rows] for k, v in found.items()} for found, rows in zip(detections, good, strict=True)]

    def thresholds(self) -> Tensor:
        """The least score (K,) within the limit; -inf where nothing is beyond it."""
        limit = self.per_image * self.images
        found = torch.full((self.num_classes,), -torch.inf)
        if self._scores:
            scores, labels = torch.cat(self._scores), torch.cat(self._labels)
            for k in range(self.num_classes):
                own = scores[labels == k + 1]
                if len(own) > limit:
                    found[k] = own.topk(limit).values[-1]
        return found
