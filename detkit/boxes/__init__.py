"""Boxes: their geometry, their regression targets, suppression and anchors.

Everywhere a box is `float32` x1 y1 x2 y2 in absolute pixels, continuous and
half-open: the width is x2 - x1 and a full image is (0, 0, W, H).
"""

from __future__ import annotations

from .anchors import AnchorGenerator
from .codec import BoxCodec
from .geometry import area, box_ioa, box_iou, clip, convert, iou
from .nms import batched_nms, nms

__all__ = [
    "AnchorGenerator",
    "BoxCodec",
    "area",
    "batched_nms",
    "box_ioa",
    "box_iou",
    "clip",
    "convert",
    "iou",
    "nms",
]
