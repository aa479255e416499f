"""torchvision's detectors by name, ``torchvision:NAME``, and the settings that make ours equal to them.

It needs no torch, so that a wrong name is told at once.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from detkit.settings import check_choice

PREFIX = "torchvision:"
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


def name_in(source: str | PathLike[str]) -> str | None:
    """The detector's name in ``torchvision:NAME``; None where a source is none of torchvision's by name.

    Raises:
        ConfigError: torchvision has no Faster R-CNN of that name; the message lists those there are.
    """
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    name = text.removeprefix(PREFIX)
    check_choice(PREFIX.rstrip(":"), name, ARCHITECTURES)
    return name
