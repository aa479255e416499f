"""Images at several scales, each region read from the one where it is as large as what the network was trained on.

Fast R-CNN, section 2.4 and test.py:85-92 (papers.md 2.2): five scales in a test, regions of about 224 x 224 pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.boxes import area
from detkit.features.roi_pooling import RoIPooler

#: The side of the images that backbones learn to classify, in pixels.
SIDE = 224


class PyramidFeatures(NamedTuple):
    """Feature maps of the same N images at S scales.

    maps: for each scale its maps; factors: (S, N, 4), on the CPU: pixels of a scale per pixel of the first, in x and y.
    """

    maps: list[list[Tensor]]
    factors: Tensor


def nearest_scale(boxes: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Which scale each region is read from: the one where its area is nearest to 224 x 224, the first of equals.

    Args:
        boxes: (R, 4), in pixels of the first scale.
        factors: (S, 4) or (S, R, 4), pixels of each scale per pixel of the first.

    Returns:
        the scale, int64 (R,), and the boxes (R, 4) in its pixels.
    """
    everywhere = boxes * (factors if factors.ndim == 3 else factors[:, None])
    scale = (area(everywhere) - SIDE**2).abs().argmin(0)
    return scale, everywhere.gather(0, scale[None, :, None].expand(1, -1, 4))[0]


class PyramidPooler(nn.Module):
    """A `RoIPooler` that also takes `PyramidFeatures`; boxes are in pixels of the first scale."""

    def __init__(self, pooler: RoIPooler) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, features: list[Tensor] | PyramidFeatures, boxes: list[Tensor]) -> Tensor:
        """Pool every region of every image; see `RoIPooler.forward`."""
        if not isinstance(features, PyramidFeatures):
            return self.pooler(features, boxes)
        counts = [len(b) for b in boxes]
        rois = torch.cat(boxes)
        factors = features.factors.repeat_interleave(torch.tensor(counts), dim=1).to(rois.device)
        scale, rois = nearest_scale(rois, factors)
        pooled: Tensor | None = None
        for number, maps in enumerate(features.maps):
            here = scale == number
            own = [b[h] for b, h in zip(rois.split(counts), here.split(counts), strict=True)]
            part = self.pooler(maps, own)
            if pooled is None:
                pooled = part.new_zeros(len(rois), *part.shape[1:])
            pooled[here] = part
        return pooled
