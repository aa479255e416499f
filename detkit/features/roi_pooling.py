"""RoI pooling: each region's features in a grid of fixed size, from one map, a pyramid, or images at several scales."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from detkit.boxes import area, group_order
from detkit.errors import ConfigError
from detkit.features.roi_align import multiscale_roi_align

#: The side of the images that backbones learn to classify, in pixels.
SIDE = 224


class RoIPooler(nn.Module):
    """RoI max pooling (Fast R-CNN, section 2.1) or RoIAlign (He et al. 2017) over one or several feature maps.

    With several maps each region is read from the level that fits its size: floor(4 + log2(sqrt(area) / 224)), kept
    inside the pyramid (Lin et al. 2017, equation 1).

    Args:
        kind: ``max`` or ``align``.
        output_size: cells a side.
        strides: pixels per cell of each map, finest first; maps beyond these are not read.
        sampling_ratio: samples per cell and axis of RoIAlign; 0 adapts to the region's size.
    """

    def __init__(self, kind: str, output_size: int, strides: list[int], sampling_ratio: int = 2) -> None:
        super().__init__()
        if kind not in ("max", "align"):
            raise ConfigError(f"unknown pooling {kind!r}; the known ones are max, align")
        self.kind, self.output_size, self.strides, self.sampling_ratio = kind, output_size, strides, sampling_ratio

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """Pool every region of every image.

        Args:
            features: maps (N, C, H/s, W/s), one for each of ``strides``.
            rois: (R, 5), the number of the image and the box in the batch's pixels; see `Regions.rois`.

        Returns:
            (R, C, output_size, output_size), of the features' type.
        """
        features = features[: len(self.strides)]
        if self.kind == "align" and self.sampling_ratio > 0 and rois.device.type == "cpu":
            return self._align(features, rois)
        if len(features) == 1:
            return self._pool(features[0], rois, self.strides[0])
        parts, position = _by_group(rois, self.levels(rois[:, 1:]), len(features))
        pooled = torch.cat([self._pool(*each) for each in zip(features, parts, self.strides, strict=True)])
        return pooled[position]

    def levels(self, boxes: Tensor) -> Tensor:
        """The level (0 is the finest) that each of the boxes (R, 4) is read from, int64 (R,)."""
        finest, coarsest = math.log2(self.strides[0]), math.log2(self.strides[-1])
        level = torch.floor(4 + torch.log2(area(boxes).sqrt() / SIDE) + 1e-6)
        return (level.nan_to_num(finest).clamp(finest, coarsest) - finest).long()

    def _align(self, features: list[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign from all maps at once."""
        level = self.levels(rois[:, 1:])
        scales = [1 / stride for stride in self.strides]
        maps = [_as_float(each) for each in features]
        pooled = multiscale_roi_align(maps, rois, level, scales, self.output_size, self.sampling_ratio)
        return pooled.to(features[0].dtype)

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        source = _as_float(feature)
        if self.kind == "align":
            pooled = roi_align(source, rois, self.output_size, 1 / stride, self.sampling_ratio)
        else:
            # The kernel takes inclusive corners, as the paper's code gave it.
            inclusive = torch.cat([rois[:, :3], rois[:, 3:] - 1], dim=1)
            pooled = roi_pool(source, inclusive, self.output_size, 1 / stride)
        return pooled.to(feature.dtype)


def _as_float(feature: Tensor) -> Tensor:
    """In float32: the kernels know no half types on a CPU, and rounding coordinates to them would move the cells."""
    return feature.float() if feature.dtype in (torch.bfloat16, torch.float16) else feature


def pooled_cells(box: Tensor, stride: int, output_size: int) -> Tensor:
    """The cells of a map that each bin of RoI max pooling takes the largest value of; to follow or to draw it.

    The corners are rounded to cells; the bins divide what lies between them, each rounded outward, so that neighbours
    may share a row or column of cells (Fast R-CNN's layer). Bins are not cut at the map's border here.

    Args:
        box: (4,), in the image's pixels.
        stride: pixels per cell.
        output_size: S bins a side.

    Returns:
        int64 (S, S, 4), for each bin x1 y1 x2 y2 in cells, half-open.
    """
    corners = torch.cat([box[:2], box[2:] - 1]).double() / stride
    x1, y1, x2, y2 = (int(value) for value in (corners + 0.5).floor())
    ranges = []
    for first, last in ((x1, x2), (y1, y2)):
        cells, index = max(last - first + 1, 1), torch.arange(output_size)
        start, stop = index * cells // output_size, -(-(index + 1) * cells // output_size)
        ranges.append((first + start, first + stop))
    (left, right), (top, bottom) = ranges
    grids = [torch.meshgrid(y, x, indexing="ij") for y, x in ((top, left), (bottom, right))]
    return torch.stack([grids[0][1], grids[0][0], grids[1][1], grids[1][0]], dim=-1)


def sampled_points(box: Tensor, stride: int, output_size: int, sampling_ratio: int = 2) -> Tensor:
    """The points of a map that each bin of RoIAlign takes the mean of, interpolated between cells.

    Args:
        box: (4,), in the image's pixels; below one cell a side it counts as one cell.
        stride: pixels per cell.
        output_size: S bins a side.
        sampling_ratio: n points a side of a bin.

    Returns:
        float64 (S, S, n, n, 2), x and y in cells from the map's border; a cell's value is at its middle. The points lie
        half a cell to the lower right of where the region's own are, as torchvision's detectors have them
        (``aligned=False``, the first RoIAlign's convention).
    """
    x1, y1, x2, y2 = (box.double() / stride).tolist()
    count = output_size * sampling_ratio
    steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x, y = x1 + steps * max(x2 - x1, 1.0) + 0.5, y1 + steps * max(y2 - y1, 1.0) + 0.5
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return points.unflatten(1, (output_size, -1)).unflatten(0, (output_size, -1)).transpose(1, 2)


class PyramidFeatures(NamedTuple):
    """Feature maps of the same N images at S scales.

    maps: for each scale its maps; factors: (S, N, 4), on the CPU: pixels of a scale per pixel of the first, in x and y.
    """

    maps: list[list[Tensor]]
    factors: Tensor


class PyramidPooler(nn.Module):
    """A `RoIPooler` that also takes `PyramidFeatures`; boxes are in pixels of the first scale."""

    def __init__(self, pooler: RoIPooler) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, features: list[Tensor] | PyramidFeatures, rois: Tensor) -> Tensor:
        """Pool every region of every image; see `RoIPooler.forward`."""
        if not isinstance(features, PyramidFeatures):
            return self.pooler(features, rois)
        factors = features.factors.to(rois.device, non_blocking=True)
        scale, boxes = nearest_scale(rois[:, 1:], factors[:, rois[:, 0].long()])
        parts, position = _by_group(torch.cat([rois[:, :1], boxes], dim=1), scale, len(features.maps))
        return torch.cat([self.pooler(*each) for each in zip(features.maps, parts, strict=True)])[position]


def _by_group(rois: Tensor, group: Tensor, groups: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The regions (R, 5) of each group, such as a level, and where each region is among them all, int64 (R,)."""
    order = group_order(group)
    # One wait for the device; to look for the regions of each group would be one a group.
    counts = (group[:, None] == torch.arange(groups, device=group.device)).sum(0).tolist()
    return rois[order].split(counts), order.argsort()


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


def distinct_rois(boxes: Tensor, stride: int, groups: Tensor | None = None) -> Tensor:
    """The first of all boxes (R, 4) whose corners fall on the same cells: their indices, ascending.

    RoI max pooling rounds corners to cells, so that such boxes have the same features. The authors' code (test.py of
    Fast R-CNN, papers.md 2.2) computes them once and hands the result to all of them, of which suppression keeps one;
    here the others are left out. Corners are rounded as inclusive pixels, halves to even, as there.

    Args:
        boxes: in pixels of the batch.
        stride: pixels per cell.
        groups: int64 (R,); boxes of different groups are different.
    """
    cells = torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1).div(stride).round().long()
    if groups is not None:
        cells = torch.cat([cells, groups[:, None]], dim=1)
    _, kind = cells.unique(dim=0, return_inverse=True)
    position = torch.arange(len(boxes), device=boxes.device)
    first = torch.full_like(position, len(boxes)).scatter_reduce(0, kind, position, "amin")
    return first[first < len(boxes)].sort().values
