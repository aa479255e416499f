"""What one can ask of boxes: area, overlap, clipping, other notations.

Shapes: N and M count boxes. Boxes are half-open, so nothing here adds 1
(papers.md 2.4 tells where the papers' code does). A box whose sides are not
positive is empty: its area and all its overlaps are 0, never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.errors import ConfigError

FORMATS = ("xyxy", "xywh", "cxcywh")


def as_float(boxes: Tensor) -> Tensor:
    """`boxes` in float32, or unchanged where they are float32 or float64 already.

    Half precision has 8 to 11 bits: too few for a coordinate of 1000 pixels, let alone an area.
    """
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def area(boxes: Tensor) -> Tensor:
    """The area of each box in square pixels: (..., 4) -> (...). An empty or inverted box has area 0."""
    boxes = as_float(boxes)
    width = (boxes[..., 2] - boxes[..., 0]).clamp(min=0)
    height = (boxes[..., 3] - boxes[..., 1]).clamp(min=0)
    return width * height


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """The area each of `a` (N, 4) shares with each of `b` (M, 4): (N, M)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where whole is 0 (then part is 0 too)."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of `a` (N, 4) with each of `b` (M, 4): (N, M) in [0, 1].

    Half precision is computed and returned in float32.
    """
    a, b = as_float(a), as_float(b)
    shared = _intersection(a, b)
    return _ratio(shared, area(a)[:, None] + area(b)[None, :] - shared)


iou = box_iou


def box_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of `a` (N, 4) and `b` (M, 4) over the area of `a`: (N, M) in [0, 1].

    The share of each box of `a` that lies inside each of `b`; COCO compares detections with
    crowd regions in this way.
    """
    a, b = as_float(a), as_float(b)
    return _ratio(_intersection(a, b), area(a)[:, None])


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) moved to the inside of an image of `size` = (height, width): x to [0, W], y to [0, H]."""
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width)
    y = boxes[..., 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def convert(boxes: Tensor, source: str, target: str) -> Tensor:
    """Boxes (..., 4) written in another notation.

    Notations: "xyxy" (corners), "xywh" (top left corner and size, as in COCO's files) and
    "cxcywh" (centre and size). Raises ConfigError for any other.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise ConfigError(f"unknown box notation {name!r}: use one of {', '.join(FORMATS)}")
    if source == target:
        return boxes
    first, second = boxes[..., :2], boxes[..., 2:]
    if source == "xywh":
        corners = (first, first + second)
    elif source == "cxcywh":
        corners = (first - second / 2, first + second / 2)
    else:
        corners = (first, second)
    top_left, bottom_right = corners
    if target == "xyxy":
        parts = corners
    elif target == "xywh":
        parts = (top_left, bottom_right - top_left)
    else:
        parts = ((top_left + bottom_right) / 2, bottom_right - top_left)
    return torch.cat(parts, dim=-1)
