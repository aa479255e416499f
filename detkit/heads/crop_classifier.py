"""Classify and refine warped regions: R-CNN's softmax, linear SVMs and box regressors, and its final detections.

Shape letters: R regions of an image, K classes, D5 and D7 features of pool5 and fc7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.boxes import batched_nms, clip
from detkit.boxes.ordering import best_first
from detkit.errors import ConfigError
from detkit.features import CropFeatures, ImageBatch
from detkit.features.initialization import normal_
from detkit.heads.box_regressor import BoxRegressors
from detkit.heads.linear_svm import LinearSVMs
from detkit.heads.set_limit import SetLimit

CLASSIFIERS = ("svm", "softmax")


class Variant(NamedTuple):
    """One of the four ways to detect with a trained R-CNN (the rows of the paper's ablation, table 2)."""

    classifier: str
    box_regression: bool

    def __str__(self) -> str:
        return {"svm": "SVM", "softmax": "softmax"}[self.classifier] + " + boxes" * self.box_regression


@dataclass
class CropSettings:
    """The numbers of R-CNN's detection (papers.md 2.1).

    Args:
        classifier: svm or softmax.
        box_regression: refine boxes.
        score_threshold: detections need a higher score.
        max_candidates: best detections of each class and image that enter suppression; None: all.
        nms_threshold: IoU within a class above which the lower one is suppressed.
        max_detections: kept of each image.
    """

    classifier: str = "svm"
    box_regression: bool = True
    score_threshold: float = 0.0
    max_candidates: int | None = 100
    nms_threshold: float = 0.3
    max_detections: int = 100

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise ConfigError(f"unknown classifier {self.classifier!r}; the known ones are {', '.join(CLASSIFIERS)}")
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be within 0 and 1")
        for name in ("max_candidates", "max_detections"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")


class CropClassifier(nn.Module):
    """All that R-CNN learns on top of its network.

    Args:
        pool5_features, fc7_features: D5 and D7.
        num_classes: K, without background.
        settings: see `CropSettings`.

    Attributes:
        cls_score: the softmax's layer, which learns with the network.
        svms, box_regressors: of each class; they are trained afterwards.
    """

    def __init__(self, pool5_features: int, fc7_features: int, num_classes: int, settings: CropSettings) -> None:
        super().__init__()
        self.settings = settings
        self.cls_score = nn.Linear(fc7_features, num_classes + 1)
        normal_(self.cls_score, 0.01)
        self.svms = LinearSVMs(fc7_features, num_classes)
        self.box_regressors = BoxRegressors(pool5_features, num_classes)

    def forward(self, fc7: Tensor) -> Tensor:
        """Logits (R, K + 1), background first, in float32, of fc7 features (R, D7)."""
        return self.cls_score(fc7.to(self.cls_score.weight.dtype)).float()

    @property
    def variant(self) -> Variant:
        """How to detect: as the settings ask for, with what is trained."""
        svm = self.settings.classifier == "svm" and bool(self.svms.trained.any())
        return Variant("svm" if svm else "softmax", self.settings.box_regression and self._refines)

    @property
    def variants(self) -> list[Variant]:
        """All that is trained, from the plainest."""
        classifiers = ["softmax"] + ["svm"] * bool(self.svms.trained.any())
        return [Variant(name, boxes) for name in classifiers for boxes in (False, True) if self._refines or not boxes]

    @property
    def _refines(self) -> bool:
        return bool(self.box_regressors.trained.any())

    def scores(self, fc7: Tensor, classifier: str) -> Tensor:
        """Scores (R, K) in 0..1 of fc7 features (R, D7).

        A softmax's probabilities; or SVMs' margins through a sigmoid, so that 0.5 is the separating plane, and 0 for
        classes without an SVM.
        """
        return self(fc7).softmax(1)[:, 1:] if classifier == "softmax" else self.svms(fc7).sigmoid()

    def detect(
        self,
        variant: Variant,
        features: CropFeatures,
        proposals: Tensor,
        images: ImageBatch,
        index: int,
        limit: SetLimit | None = None,
    ) -> dict[str, Tensor]:
        """Detections of one image, in its own pixels, best first.

        Args:
            variant: of `variants`.
            features: of the proposals.
            proposals: (R, 4), in the batch's pixels.
            images: the batch.
            index: of the image in it.
            limit: sees the candidates.
        """
        s = self.settings
        scores = self.scores(features.fc7, variant.classifier)
        good = scores > s.score_threshold
        if s.max_candidates is not None:
            best = scores.topk(min(s.max_candidates, len(scores)), dim=0).indices
            good &= torch.zeros_like(good).scatter(0, best, True)
        region, label = torch.where(good)
        scores, boxes = scores[region, label], proposals[region]
        if limit is not None:
            limit.see(scores, label + 1)
        if variant.box_regression:
            boxes = self.box_regressors(features.pool5[region], boxes, label + 1)
        boxes = clip(boxes, images.sizes[index])
        (solid,) = torch.where((boxes[:, 2:] > boxes[:, :2]).all(1))
        boxes, scores, label = boxes[solid], scores[solid], label[solid]
        keep = batched_nms(boxes, scores, label, s.nms_threshold).sort().values
        keep = keep[best_first(scores[keep], len(scores))[: s.max_detections]]
        return {"boxes": images.to_original(boxes[keep], index), "scores": scores[keep], "labels": label[keep] + 1}
