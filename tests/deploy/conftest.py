"""Small detectors that detect something, and one of them exported to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import detkit
from detkit.deploy.description import Description
from detkit.deploy.graph import DetectionGraph, trace
from detkit.deploy.writers import write_onnx
from detkit.detectors.base import RegionDetector
from detkit.settings import construct

OPTIONS: dict[str, Any] = {
    "class_names": ["cat", "dog"],
    "backbone": "tiny",
    "features__fpn": False,
    "image__min_size": 64,
    "image__max_size": 96,
    "roi__pool_size": 2,
    "roi__head_channels": 24,
    "detection__score_threshold": 0.01,
}
FASTER = {"rpn__pre_nms": [60, 40], "rpn__post_nms": [30, 20]}
PYRAMID = {"features__fpn": True, "features__fpn_channels": 16}


class Exported(NamedTuple):
    """A detector and its file."""

    detector: RegionDetector
    description: Description
    path: Path


@torch.no_grad()
def detecting(kind: type[RegionDetector], **options: Any) -> RegionDetector:
    """A detector with scores that differ from place to place, as after training."""
    torch.manual_seed(0)
    detector = construct(kind, OPTIONS | options).eval()
    layers = [(detector.roi_heads.box_predictor.cls_score, 0.3), (detector.roi_heads.box_predictor.bbox_pred, 0.05)]
    if isinstance(detector, detkit.FasterRCNN):
        layers.append((detector.rpn.head.cls_logits, 0.5))
    for layer, deviation in layers:
        torch.nn.init.normal_(layer.weight, std=deviation)
    return detector


def describe(detector: RegionDetector) -> Description:
    detection = detector.roi_heads.detection
    proposals = detector.given.settings.max_boxes[1] or 0 if isinstance(detector, detkit.FastRCNN) else 0
    limits = detection.score_threshold, detection.max_detections, proposals
    return Description(type(detector).__name__, detector.class_names, [7, 9], *limits, "toy.ckpt", "0.0")


def exported_to_onnx(detector: RegionDetector, path: Path) -> Exported:
    description = describe(detector)
    write_onnx(trace(DetectionGraph(detector)), description, path)
    return Exported(detector, description, path)


@pytest.fixture(scope="session")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Faster R-CNN on a pyramid."""
    detector = detecting(detkit.FasterRCNN, **FASTER, **PYRAMID)
    return exported_to_onnx(detector, tmp_path_factory.mktemp("onnx") / "faster.onnx")


def save(detector: RegionDetector, path: Path) -> Path:
    """The checkpoint of a detector, without the state of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{type(detector).__module__}.{type(detector).__qualname__}"
    about = {"class": name, "version": "0.0"}
    content = {"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams), "detkit": about}
    torch.save(content | {"pytorch-lightning_version": "2.6.6"}, path)
    return path
