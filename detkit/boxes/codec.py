"""Box regression targets: R-CNN's (dx, dy, dw, dh) parameters of a box relative to another.

R-CNN appendix C; the same in Fast and Faster R-CNN. The weights (10, 10, 5, 5) are the
papers' target normalisation by the standard deviations (.1, .1, .2, .2) (papers.md 2.3, 2.5).
Targets are scaled here and nowhere else: a network's weights never carry the normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .geometry import as_float

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""Largest decoded dw, dh: a box grows at most 62.5 times, so that exp cannot overflow (papers.md 2.5)."""


class BoxCodec:
    """Turns boxes into regression targets relative to proposals, and back.

    weights: factors of (dx, dy, dw, dh); (1, 1, 1, 1) for the RPN, (10, 10, 5, 5) for the box head.
    clamp: the largest dw and dh that `decode` believes.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), clamp: float = MAX_LOG_SCALE) -> None:
        self.weights = tuple(float(weight) for weight in weights)
        self.clamp = float(clamp)

    def __repr__(self) -> str:
        return f"BoxCodec(weights={self.weights}, clamp={self.clamp:.4f})"

    def encode(self, boxes: Tensor, proposals: Tensor) -> Tensor:
        """The deltas (..., 4) that lead from `proposals` to `boxes` (both (..., 4), leading dims broadcast).

        Always finite: sides under 1e-7 px count as that, so that rows which are only
        there to be masked out later cannot bring NaN into a loss.
        """
        boxes, proposals = as_float(boxes), as_float(proposals)
        width, height, centre_x, centre_y = _centre_form(proposals)
        to_width, to_height, to_x, to_y = _centre_form(boxes)
        smallest = torch.finfo(proposals.dtype).eps
        width, height = width.clamp(min=smallest), height.clamp(min=smallest)
        to_width, to_height = to_width.clamp(min=smallest), to_height.clamp(min=smallest)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (to_x - centre_x) / width,
                wy * (to_y - centre_y) / height,
                ww * torch.log(to_width / width),
                wh * torch.log(to_height / height),
            ),
            dim=-1,
        )

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """The boxes (..., 4) that `deltas` make of `proposals`; leading dims broadcast.

        For deltas (N, K, 4), one for each class, give proposals as (N, 1, 4). Half precision is
        decoded in float32. The boxes are not clipped to the image.
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
    """Width, height, centre x, centre y, each (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return width, height, x1 + 0.5 * width, y1 + 0.5 * height
