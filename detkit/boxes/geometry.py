"""Boxes (N, 4): areas and overlaps, formats, and regression targets.

Shape letters: N and M boxes. Boxes are half-open, so nothing here adds 1 (papers.md 2.4 says where the papers' code
does). A box whose sides are not positive is empty: its area and all its overlaps are 0, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import ops

from detkit.settings import check_choice

FORMATS = ("xyxy", "xywh", "cxcywh")


def as_float(boxes: Tensor) -> Tensor:
    """The boxes in float32, or unchanged if they are float32 or float64 already.

    Half precision has 8 to 11 bits: too few for a coordinate of 1000 pixels, let alone an area.
    """
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def area(boxes: Tensor) -> Tensor:
    """The area of each box in square pixels: (..., 4) -> (...). An empty or inverted box has area 0."""
    boxes = as_float(boxes)
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """The area that each of ``a`` (N, 4) shares with each of ``b`` (M, 4): (N, M)."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where whole is 0 (then part is 0 too)."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each of ``a`` (N, 4) with each of ``b`` (M, 4): (N, M) in [0, 1].

    Half precision is computed and returned in float32.
    """
    a, b = as_float(a), as_float(b)
    shared = _intersection(a, b)
    return _ratio(shared, area(a)[:, None] + area(b)[None, :] - shared)


iou = box_iou


def box_ioa(a: Tensor, b: Tensor) -> Tensor:
    """Intersection of ``a`` (N, 4) and ``b`` (M, 4) over the area of ``a``: (N, M) in [0, 1].

    The share of each box of ``a`` that lies in each of ``b``; COCO compares detections with crowds in this way.
    """
    a, b = as_float(a), as_float(b)
    return _ratio(_intersection(a, b), area(a)[:, None])


def clip(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) clipped to their images: x to [0, W], y to [0, H], for ``limits`` (..., 4) of W, H, W, H."""
    return torch.minimum(boxes.clamp(min=0), limits)


def convert(boxes: Tensor, source: str, target: str) -> Tensor:
    """Boxes (..., 4) of the format ``source`` in the format ``target``; ConfigError for an unknown one.

    Formats are "xyxy" (corners), "xywh" (top left corner and size, as in COCO's files) and "cxcywh" (centre and size).
    """
    for name in (source, target):
        check_choice("box format", name, FORMATS)
    return ops.box_convert(boxes, source, target)


# -- regression targets ------------------------------------------------------------------------

#: Largest decoded dw and dh: a box grows at most 62.5 times, so that exp cannot overflow (papers.md 2.5).
MAX_LOG_SCALE = math.log(1000.0 / 16)


class BoxCodec:
    """Encodes boxes as regression targets (dx, dy, dw, dh) relative to proposals, and decodes them.

    R-CNN appendix C; the same in Fast and Faster R-CNN. The weights (10, 10, 5, 5) are the papers' normalisation of the
    targets by the standard deviations (.1, .1, .2, .2) (papers.md 2.3, 2.5). Targets are scaled here and nowhere else:
    a network's weights never hold the normalisation.

    Args:
        weights: factors of (dx, dy, dw, dh); (1, 1, 1, 1) for the RPN, (10, 10, 5, 5) for the box head.
        clamp: limit of dw and dh in `decode`.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), clamp: float = MAX_LOG_SCALE) -> None:
        self.weights = tuple(float(weight) for weight in weights)
        self.clamp = float(clamp)

    def __repr__(self) -> str:
        return f"BoxCodec(weights={self.weights}, clamp={self.clamp:.4f})"

    def encode(self, boxes: Tensor, proposals: Tensor) -> Tensor:
        """The deltas (..., 4) from ``proposals`` to ``boxes`` (both (..., 4), leading dimensions broadcast).

        Always finite: sides below 1e-7 px count as that, so that rows that are masked later cannot bring NaN into a
        loss.
        """
        boxes, proposals = as_float(boxes), as_float(proposals)
        width, height, centre_x, centre_y = _centre_form(proposals)
        to_width, to_height, to_x, to_y = _centre_form(boxes)
        smallest = torch.finfo(proposals.dtype).eps
        width, height = width.clamp(min=smallest), height.clamp(min=smallest)
        to_width, to_height = to_width.clamp(min=smallest), to_height.clamp(min=smallest)
        wx, wy, ww, wh = self.weights
        dx, dy = wx * (to_x - centre_x) / width, wy * (to_y - centre_y) / height
        dw, dh = ww * torch.log(to_width / width), wh * torch.log(to_height / height)
        return torch.stack((dx, dy, dw, dh), dim=-1)

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """The boxes (..., 4) that ``deltas`` make of ``proposals``; leading dimensions broadcast.

        For deltas (N, K, 4), one for each class, give proposals as (N, 1, 4). Half precision is decoded in float32. The
        boxes are not clipped to the image.
        """
        deltas, proposals = as_float(deltas), as_float(proposals)
        width, height, centre_x, centre_y = _centre_form(proposals)
        wx, wy, ww, wh = self.weights
        dx, dy, dw, dh = deltas.unbind(-1)
        x = dx / wx * width + centre_x
        y = dy / wy * height + centre_y
        half_width = 0.5 * (torch.exp((dw / ww).clamp(max=self.clamp)) * width)
        half_height = 0.5 * (torch.exp((dh / wh).clamp(max=self.clamp)) * height)
        return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width, height, centre x and centre y, each (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return width, height, x1 + 0.5 * width, y1 + 0.5 * height
