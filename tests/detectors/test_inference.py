"""Detectors that only predict any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import detkit
from detkit.data import Shapes
from detkit.detectors.inference import OptimizeForInference, channels_last_head
from detkit.heads.roi_heads import RoISettings, build_box_head
from tests.features.test_folding import norms, with_statistics

from .conftest import PYRAMID, Small, assert_same, in_the_order_of, sample


@pytest.mark.parametrize("svd_ranks", [None, {"fc6": 5, "fc7": 4}])
def test_the_head_reads_regions_in_their_own_order(svd_ranks: dict[str, int] | None) -> None:
    head, _ = build_box_head(RoISettings(head_channels=16, svd_ranks=svd_ranks), inputs=6)
    regions = torch.randn(9, 6, 7, 7).contiguous(memory_format=torch.channels_last)
    expected = head.eval()(regions)
    torch.testing.assert_close(channels_last_head(head, 7)(regions), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        PYRAMID | {"backbone": "resnet18", "roi__head": "conv", "anchors__sizes": [[8.0], [16], [32], [64], [128]]},
        {"backbone": "mobilenet_v2", "roi__head": "top", "roi__pool_size": 7},
        {"backbone": "mobilenet_v2", "roi__pooling": "max"},
        {"features__channels_last": True},
    ],
)
def test_detections_stay_the_same(detecting: Small, options: dict[str, Any]) -> None:
    detector = with_statistics(detecting(**options))
    images = [sample(64, 96)["image"], sample(50, 90)["image"]]
    expected = detector.predict(images)
    detkit.detectors.optimize_for_inference(detector)
    assert norms(detector.backbone) == 0
    for found, each in zip(detector.predict(images), expected, strict=True):
        assert len(each["boxes"]) == len(found["boxes"]) > 0
        assert_same(in_the_order_of(each, found), each, 1e-2)


def test_load_optimizes_where_it_is_asked_to(
    small: Small, trainer: Any, shapes: Callable[..., Shapes], tmp_path: Path
) -> None:
    runner = trainer(max_steps=1, limit_val_batches=0, callbacks=[OptimizeForInference()])
    model = small(backbone="resnet18")
    runner.fit(model, datamodule=shapes())
    runner.save_checkpoint(tmp_path / "fitted.ckpt")
    assert norms(detkit.load(tmp_path / "fitted.ckpt")) == norms(model) > 0
    assert norms(detkit.load(tmp_path / "fitted.ckpt", optimize=True)) == 0
    runner.predict(model, datamodule=shapes())
    assert norms(model) == 0


def test_rcnn_stays_as_it_is() -> None:
    detector = detkit.RCNN(["cat"], backbone="lenet5")
    before = [name for name, _ in detector.named_modules()]
    detkit.detectors.optimize_for_inference(detector)
    assert [name for name, _ in detector.named_modules()] == before
    assert not any(parameter.requires_grad for parameter in detector.parameters())


def test_what_is_not_in_float32_stays_as_it_is(detecting: Small) -> None:
    detector = with_statistics(detecting(backbone="resnet18")).to(torch.bfloat16)
    before = norms(detector)
    detkit.detectors.optimize_for_inference(detector)
    assert norms(detector) == before > 0


def test_the_backbone_of_an_alternating_detectors_rpn_is_folded_too(detecting: Small) -> None:
    detector = with_statistics(detecting(backbone="resnet18", training_scheme="alternating"))
    detkit.detectors.optimize_for_inference(detector)
    assert norms(detector) == 0
