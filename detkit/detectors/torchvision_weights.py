"""torchvision's Faster R-CNN detectors as ours: the arguments of each, and the names of their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from detkit.errors import ConfigError
from detkit.features.weights import fit_state_dict

if TYPE_CHECKING:
    from detkit.detectors.faster_rcnn import FasterRCNN

_MOBILENET: dict[str, Any] = {
    "backbone": "mobilenet_v3_large",
    # Both maps have stride 32, so every region is read from the first.
    "backbone_levels": ["13", "16"],
    "anchor_sizes": [[32.0, 64.0, 128.0, 256.0, 512.0]] * 3,
    "rpn_score_threshold": 0.05,
    # torchvision hands its own norm layer to the network, with its default epsilon instead of 0.001.
    "batch_norm_eps": 1e-5,
}

#: Arguments of `FasterRCNN` that make it torchvision's detector of that name.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": {"backbone": "resnet50"},
    "fasterrcnn_resnet50_fpn_v2": {
        "backbone": "resnet50",
        "fpn_norm": True,
        "rpn_convolutions": 2,
        "box_head": "conv",
    },
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILENET,
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        **_MOBILENET,
        "min_size": 320,
        "max_size": 640,
        "rpn_pre_nms": (2000, 150),
        "rpn_post_nms": (2000, 150),
    },
}


def from_torchvision(
    detector: type[FasterRCNN],
    arch: str,
    state_dict: dict[str, Tensor],
    class_names: list[str],
    overrides: dict[str, Any],
) -> FasterRCNN:
    """See `FasterRCNN.from_torchvision`."""
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown torchvision detector {arch!r}; the known ones are {', '.join(ARCHITECTURES)}")
    arguments = {"rpn_min_size": 1e-3, **ARCHITECTURES[arch], **overrides}
    model = detector(class_names=unique(class_names), **arguments)
    fit_state_dict(model, state_dict, source=f"of {arch}")
    return model.eval()


def unique(names: list[str]) -> list[str]:
    """The names, repeated ones numbered: torchvision's COCO categories hold "N/A" ten times."""
    return [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
