"""torchvision's Faster R-CNN detectors as ours: the arguments of each, and the names of their weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.detectors.base import RegionDetector
from detkit.features.weights import fit_state_dict
from detkit.settings import check_choice, construct

_MOBILENET: dict[str, Any] = {
    "backbone": "mobilenet_v3_large",
    # Both maps have stride 32, so every region is read from the first.
    "features__levels": ["13", "16"],
    # torchvision hands its own norm layer to the network, with its default epsilon instead of 0.001.
    "features__batch_norm_eps": 1e-5,
    "anchors__sizes": [[32.0, 64.0, 128.0, 256.0, 512.0]] * 3,
    "rpn__score_threshold": 0.05,
}

#: Settings of `FasterRCNN` that make it torchvision's detector of that name.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {"backbone": "resnet50"},
    "fasterrcnn_resnet50_fpn_v2": {
        "backbone": "resnet50",
        "features__fpn_norm": True,
        "rpn__convolutions": 2,
        "roi__head": "conv",
    },
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILENET,
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        **_MOBILENET,
        "image__min_size": 320,
        "image__max_size": 640,
        "rpn__pre_nms": [2000, 150],
        "rpn__post_nms": [2000, 150],
    },
}


def from_torchvision(
    detector: type[RegionDetector],
    arch: str,
    state_dict: dict[str, Tensor],
    class_names: list[str],
    overrides: dict[str, Any],
) -> RegionDetector:
    """See `FasterRCNN.from_torchvision`."""
    check_choice("torchvision detector", arch, ARCHITECTURES)
    settings = {"rpn__min_size": 1e-3, **ARCHITECTURES[arch], **overrides}
    model = construct(detector, {"class_names": unique(class_names), **settings})
    fit_state_dict(model, state_dict, source=f"of {arch}")
    return model.eval()


def unique(names: list[str]) -> list[str]:
    """The names, repeated ones numbered: torchvision's COCO categories hold "N/A" ten times."""
    return [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
