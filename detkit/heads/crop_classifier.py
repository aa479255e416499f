"""Classify and refine warped regions: R-CNN's softmax, linear SVMs and box regressors, and its final detections.

Shape letters: R regions of an image or of a batch, K classes, D5 and D7 features of pool5 and fc7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.features import CropFeatures, ImageBatch
from detkit.features.layers import normal_
from detkit.heads.box_regressor import BoxRegressors
from detkit.heads.detection import Candidates, DetectionSettings, candidates, suppress
from detkit.heads.linear_svm import LinearSVMs
from detkit.settings import check_choice
from detkit.types import Detections

CLASSIFIERS = ("svm", "softmax")
#: Boxes without width or height are dropped; any others are kept.
MIN_SIDE = 1e-6


class Variant(NamedTuple):
    """One of the four ways to detect with a trained R-CNN (the rows of the paper's ablation, table 2)."""

    classifier: str
    box_regression: bool

    def __str__(self) -> str:
        name = "SVM" if self.classifier == "svm" else "softmax"
        return f"{name} + boxes" if self.box_regression else name


class SetLimit:
    """Limit of ``per_image`` detections of a class and image on average over a whole test set.

    The authors' rcnn_test.m:44-91 keeps 40, before suppression, to save memory; what it drops scores too low to matter
    to AP. In a test on several devices each applies the limit to its own images.
    """

    def __init__(self, num_classes: int, per_image: int) -> None:
        self.num_classes = num_classes
        self.per_image = per_image
        self.images = 0
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor, images: int = 1) -> None:
        """Add the candidates of that many images: scores (N,) and labels (N,) from 1 to K."""
        self.images += images
        self._scores.append(scores.cpu())
        self._labels.append(labels.cpu())

    def apply(self, detections: list[Detections]) -> list[Detections]:
        """Each image's detections, on the CPU, without those beyond the limit; to be called after the last image."""
        thresholds = self.thresholds()
        result = []
        for image in detections:
            kept = image["scores"] >= thresholds[image["labels"] - 1]
            result.append(Detections({name: value[kept] for name, value in image.items()}))
        return result

    def thresholds(self) -> Tensor:
        """The lowest score (K,) within the limit; -inf for classes that do not reach it."""
        limit = self.per_image * self.images
        thresholds = torch.full((self.num_classes,), -torch.inf)
        if self._scores:
            scores = torch.cat(self._scores)
            labels = torch.cat(self._labels)
            for k in range(self.num_classes):
                of_class = scores[labels == k + 1]
                if len(of_class) > limit:
                    thresholds[k] = of_class.topk(limit).values[-1]
        return thresholds


class Classified(NamedTuple):
    """Scores and boxes of R regions of an image.

    scores: (R, K), 0 to 1.
    boxes: (R, K, 4), refined by each class, in the batch's pixels.
    """

    scores: Tensor
    boxes: Tensor


class CropClassifier(nn.Module):
    """All that R-CNN learns on top of its network.

    Args:
        pool5_features, fc7_features: D5 and D7.
        num_classes: K, without background.
        classifier: svm or softmax, to detect with.
        box_regression: refine boxes.
        settings: see `DetectionSettings`.
    """

    def __init__(
        self,
        pool5_features: int,
        fc7_features: int,
        num_classes: int,
        classifier: str,
        box_regression: bool,
        settings: DetectionSettings,
    ) -> None:
        super().__init__()
        check_choice("classifier", classifier, CLASSIFIERS)
        self.requested = Variant(classifier, box_regression)
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
        """The variant to detect with: the requested one, without what is not trained."""
        classifier = self.requested.classifier if self.svms.trained.any() else "softmax"
        return Variant(classifier, self.requested.box_regression and bool(self.box_regressors.trained.any()))

    @property
    def variants(self) -> list[Variant]:
        """All variants whose parts are trained, the simplest first."""
        classifiers = ["softmax", "svm"] if self.svms.trained.any() else ["softmax"]
        refinements = [False, True] if self.box_regressors.trained.any() else [False]
        return [Variant(classifier, boxes) for classifier in classifiers for boxes in refinements]

    def scores(self, fc7: Tensor, classifier: str) -> Tensor:
        """Scores (R, K) in 0..1 of fc7 (R, D7): the softmax's probabilities, or the SVMs' margins through a sigmoid.

        There 0.5 is the separating plane, and 0 is for classes without an SVM.
        """
        return self(fc7).softmax(1)[:, 1:] if classifier == "softmax" else self.svms(fc7).sigmoid()

    def classify(self, variant: Variant, features: CropFeatures, proposals: Tensor) -> Classified:
        """Scores and refined boxes of one image's proposals (R, 4), in the batch's pixels, by one of `variants`."""
        if variant.box_regression:
            boxes = self.box_regressors(features.pool5, proposals)
        else:
            boxes = proposals[:, None].expand(-1, self.svms.weight.shape[0], 4)
        return Classified(self.scores(features.fc7, variant.classifier), boxes)

    def detect(
        self, classified: Sequence[Classified], images: ImageBatch, limit: SetLimit | None = None
    ) -> list[Detections]:
        """Detections of each image of a batch, in its own pixels, best first.

        Of all images together: the host waits for a device twice, however many there are.

        Args:
            classified: the regions of each image.
            images: the batch.
            limit: is updated with the candidates for suppression.
        """
        scores, boxes = (torch.cat(parts) for parts in zip(*classified, strict=True))
        image = torch.cat([torch.full_like(each.scores[:, 0], i).long() for i, each in enumerate(classified)])
        rows, classes = candidates(scores, image, len(classified), self.settings)
        found = Candidates(boxes[rows, classes], scores[rows, classes], classes + 1, image[rows])
        if limit is not None:
            limit.update(found.scores, found.labels, len(classified))
        return suppress(found, images, self.settings, MIN_SIDE).per_image()
