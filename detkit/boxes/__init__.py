"""Boxes: their geometry, regression targets, suppression and anchors.

Everywhere a box is `float32` x1 y1 x2 y2 in absolute pixels, continuous and half-open: the width is x2 - x1 and a full
image is (0, 0, W, H).
"""

from detkit.boxes.anchors import AnchorGenerator, AnchorSettings
from detkit.boxes.geometry import (
    BoxCodec,
    area,
    box_ioa,
    box_iou,
    clip,
    convert,
    iou,
)
from detkit.boxes.suppression import NMSStep, batched_nms, group_order, kept_by_nms, nms, nms_steps

__all__ = [
    "AnchorGenerator",
    "AnchorSettings",
    "BoxCodec",
    "NMSStep",
    "area",
    "batched_nms",
    "box_ioa",
    "box_iou",
    "clip",
    "convert",
    "group_order",
    "iou",
    "kept_by_nms",
    "nms",
    "nms_steps",
]
