"""R-CNN's detections of an image, beside a loop over classes and boxes that does what papers.md 2.1 says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.boxes import box_iou
from detkit.features import CropFeatures, ImageBatch
from detkit.heads import CropClassifier, SetLimit, Variant
from detkit.heads.detection import DetectionSettings
from detkit.types import Detections

CLASSES, POOL5, FC7 = 3, 6, 5
WIDTH, HEIGHT = 80, 60
PAPER = DetectionSettings(0.0, 100, 0.3, 100)


def _heads(
    svms: bool = True, regressors: bool = True, classifier: str = "svm", box_regression: bool = True, **settings: Any
) -> CropClassifier:
    """One whose numbers are drawn; no class 3 for the SVMs, no class 2 for the regressors."""
    heads = CropClassifier(POOL5, FC7, CLASSES, classifier, box_regression, replace(PAPER, **settings))
    torch.nn.init.normal_(heads.cls_score.weight)
    if svms:
        heads.svms.weight.normal_()
        heads.svms.bias.normal_()
        heads.svms.scale.fill_(0.7)
        heads.svms.trained[:2] = True
    if regressors:
        heads.box_regressors.weight.normal_(std=0.05)
        heads.box_regressors.mean.normal_(std=0.05)
        heads.box_regressors.scale.fill_(1.3)
        heads.box_regressors.trained[[0, 2]] = True
    return heads.eval()


def _images(scale: float = 1.0) -> ImageBatch:
    size = (int(HEIGHT * scale), int(WIDTH * scale))
    return ImageBatch(torch.zeros(1, 3, *size), [size], [(HEIGHT, WIDTH)])


def _regions(count: int) -> tuple[CropFeatures, Tensor]:
    corner = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.6
    boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 30), dim=1)
    return CropFeatures(torch.randn(count, POOL5), torch.randn(count, FC7)), boxes


def _detect(
    heads: CropClassifier,
    variant: Variant,
    features: CropFeatures,
    boxes: Tensor,
    images: ImageBatch,
    limit: SetLimit | None = None,
) -> Detections:
    """The detections of a single image."""
    (found,) = heads.detect([heads.classify(variant, features, boxes)], images, limit)
    return found


def _plainly(heads: CropClassifier, variant: Variant, features: CropFeatures, boxes: Tensor, scale: float) -> list[Any]:
    """[(score, label, box in the image's own pixels)], best first."""
    settings, found = heads.settings, []
    for k in range(CLASSES):
        candidates = []
        for r in range(len(boxes)):
            if variant.classifier == "softmax":
                logits = [
                    float(features.fc7[r] @ heads.cls_score.weight[c] + heads.cls_score.bias[c])
                    for c in range(CLASSES + 1)
                ]
                score = math.exp(logits[k + 1]) / sum(map(math.exp, logits))
            elif heads.svms.trained[k]:
                margin = float(heads.svms.scale * features.fc7[r] @ heads.svms.weight[k] + heads.svms.bias[k])
                score = 1 / (1 + math.exp(-margin))
            else:
                continue
            if score > settings.score_threshold:
                candidates.append((score, r))
        candidates = sorted(candidates, reverse=True)[: settings.max_candidates]
        kept: list[tuple[float, Tensor]] = []
        for score, r in candidates:
            x1, y1, x2, y2 = boxes[r].tolist()
            if variant.box_regression and heads.box_regressors.trained[k]:
                b = heads.box_regressors
                t = (b.scale * features.pool5[r]) @ b.weight[k] + b.bias[k]
                dx, dy, dw, dh = (t @ b.inverse[k] + b.mean[k]).tolist()
                w, h = x2 - x1, y2 - y1
                cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
                w, h = w * math.exp(dw), h * math.exp(dh)
                x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
            x1, x2 = (min(max(x, 0), WIDTH * scale) for x in (x1, x2))
            y1, y2 = (min(max(y, 0), HEIGHT * scale) for y in (y1, y2))
            box = torch.tensor([[x1, y1, x2, y2]])
            if x2 > x1 and y2 > y1 and all(box_iou(box, other)[0, 0] <= settings.nms_threshold for _, other in kept):
                kept.append((score, box))
        found += [(score, k + 1, (box[0] / scale)) for score, box in kept]
    return sorted(found, key=lambda row: -row[0])[: settings.max_detections]


ALL = [Variant(name, boxes) for name in ("softmax", "svm") for boxes in (False, True)]


@pytest.mark.parametrize("variant", ALL, ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"score_threshold": 0.3, "nms_threshold": 0.6}, {"max_candidates": 7}, {"max_detections": 5}],
    ids=["paper", "thresholds", "candidates", "detections"],
)
@torch.no_grad()
def test_as_a_plain_loop_over_classes_and_boxes(variant: Variant, settings: dict[str, Any]) -> None:
    heads, scale = _heads(**settings), 1.5
    features, boxes = _regions(60)
    found = _detect(heads, variant, features, boxes, _images(scale))
    expected = _plainly(heads, variant, features, boxes, scale)
    assert len(expected) >= 5
    assert found["labels"].tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found["scores"], torch.tensor([score for score, _, _ in expected]))
    torch.testing.assert_close(found["boxes"], torch.stack([box for _, _, box in expected]), rtol=1e-4, atol=1e-3)
    assert (variant.classifier == "softmax") == (3 in found["labels"])  # an SVM that is n/a never fires


def test_the_paper_lets_a_hundred_of_a_class_into_suppression() -> None:
    heads = _heads(nms_threshold=1.0, max_detections=1000)
    features, _ = _regions(150)
    boxes = torch.arange(150.0)[:, None] / 10 + torch.tensor([0.0, 0, 20, 20])
    limit = SetLimit(CLASSES, 40)
    found = _detect(heads, Variant("svm", False), features, boxes, _images(), limit)
    assert torch.bincount(found["labels"], minlength=4).tolist() == [0, 100, 100, 0]
    best = heads.svms(features.fc7).sigmoid()[:, 0].sort(descending=True).values[:100]
    torch.testing.assert_close(found["scores"][found["labels"] == 1], best)
    # The set's limit sees the candidates: 40 of them are within it.
    assert limit.images == 1
    torch.testing.assert_close(limit.thresholds()[0], best[39])


@pytest.mark.parametrize("variant", ALL, ids=str)
@pytest.mark.parametrize("count", [0, 1])
@torch.no_grad()
def test_no_region_and_one(variant: Variant, count: int) -> None:
    heads = _heads()
    features, boxes = _regions(count)
    limit = SetLimit(CLASSES, 1)
    found = _detect(heads, variant, features, boxes, _images(), limit)
    classes = 3 if variant.classifier == "softmax" else 2
    assert found["boxes"].shape == (count * classes, 4) and len(found["scores"]) == len(found["labels"])
    assert sorted(found["labels"].tolist()) == list(range(1, classes + 1)) * count
    assert limit.images == 1


@torch.no_grad()
def test_boxes_that_regression_moves_out_of_the_image_are_no_detections() -> None:
    heads = _heads()
    heads.box_regressors.mean[:] = torch.tensor([50.0, 0, 0, 0])
    features, boxes = _regions(10)
    found = _detect(heads, Variant("svm", True), features, boxes, _images())
    assert set(found["labels"].tolist()) == {2}  # whose boxes stay where they are


def test_what_is_trained_decides_how_it_detects() -> None:
    def told(**given: Any) -> tuple[str, list[str]]:
        heads = _heads(**given)
        return str(heads.variant), [str(variant) for variant in heads.variants]

    four = ["softmax", "softmax + boxes", "SVM", "SVM + boxes"]
    assert told() == ("SVM + boxes", four)
    assert told(classifier="softmax") == ("softmax + boxes", four)
    assert told(box_regression=False) == ("SVM", four)
    assert told(svms=False) == ("softmax + boxes", four[:2])
    assert told(regressors=False) == ("SVM", four[::2])
    assert told(svms=False, regressors=False) == ("softmax", four[:1])


def test_the_new_layer_begins_as_in_the_paper() -> None:
    heads = CropClassifier(POOL5, 4096, 20, "svm", True, PAPER)
    assert heads.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not heads.cls_score.bias.any()
    assert {name for name, _ in heads.named_parameters()} == {"cls_score.weight", "cls_score.bias"}


SCORES = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1, width=16)), max_size=12)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=5), st.integers(1, 4))
def test_it_keeps_the_best_of_each_class_over_all_images(images: list[list[tuple[int, float]]], per_image: int) -> None:
    limit = SetLimit(3, per_image)
    assert limit.thresholds().tolist() == [-torch.inf] * 3  # nothing seen limits nothing
    for found in images:
        limit.update(
            torch.tensor([score for _, score in found]), torch.tensor([k for k, _ in found], dtype=torch.int64)
        )
    most = per_image * len(images)
    for found in images:
        scores, labels = torch.tensor([s for _, s in found]), torch.tensor([k for k, _ in found], dtype=torch.int64)
        kept = limit.apply([{"scores": scores, "labels": labels, "boxes": torch.arange(4.0 * len(found)).view(-1, 4)}])[
            0
        ]
        expected = []
        for row, (k, score) in enumerate(found):
            better = sum(other > score for image in images for label, other in image if label == k)
            if better < most:  # fewer than the limit are better
                expected.append(row)
        assert kept["labels"].tolist() == [found[row][0] for row in expected]
        assert (kept["boxes"][:, 0] / 4).tolist() == expected
        torch.testing.assert_close(kept["scores"], scores[expected])
