"""RoIAlign (He et al. 2017) on a CPU, over one feature map or several: for each cell a weighted sum of positions.

torchvision's kernel reads a map channel by channel. Here the channels of a position are read together, by PyTorch's
`embedding_bag`, which is written for this: several times as fast, forward and backward.

Shape letters: L maps, N images, C channels, R regions, S cells a side of a pooled region, M samples a cell and axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multiscale_roi_align(
    maps: Sequence[Tensor], rois: Tensor, level: Tensor, scales: Sequence[float], size: int, samples: int
) -> Tensor:
    """As `torchvision.ops.roi_align` (not aligned), each region from one of the maps.

    Without gradients it is an operator of its own, ``detkit::multiscale_roi_align``, so that an exporter sees one
    operation.

    Args:
        maps: L maps (N, C, H/s, W/s), float32 or float64.
        rois: (R, 5), the number of the image and the box in pixels. No gradient flows into them.
        level: int64 (R,), which map each is read from.
        scales: cells per pixel of each map, 1/s.
        size: S, cells a side.
        samples: M, per cell and axis.

    Returns:
        (R, C, S, S); its memory format is channels_last.
    """
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in maps)
    align = weighted_sums if learns else _operator
    return align(list(maps), rois, level, list(scales), size, samples)


def weighted_sums(
    maps: list[Tensor], rois: Tensor, level: Tensor, scales: list[float], size: int, samples: int
) -> Tensor:
    """See `multiscale_roi_align`."""
    count, channels = maps[0].shape[:2]
    rows = torch.cat([each.permute(0, 2, 3, 1).reshape(-1, channels) for each in maps])
    with torch.no_grad():
        heights, widths = (_vector([each.shape[side] for each in maps], torch.int64) for side in (2, 3))
        cells = heights * widths
        first = ((cells * count).cumsum(0) - cells * count)[level] + rois[:, 0].long() * cells[level]
        scale, height, width = _vector(scales, rois.dtype)[level], heights[level], widths[level]
        x, x_weight = _positions(rois[:, 1] * scale, rois[:, 3] * scale, width, size, samples)
        y, y_weight = _positions(rois[:, 2] * scale, rois[:, 4] * scale, height, size, samples)
        y = first[:, None, None] + y * width[:, None, None]
        index = y[:, :, None, :, None] + x[:, None, :, None, :]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :] / samples**2
        shape = (-1, (2 * samples) ** 2)
        index, weight = index.reshape(shape), weight.reshape(shape)
    pooled = F.embedding_bag(index, rows, per_sample_weights=weight.to(rows.dtype), mode="sum")
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2)


_operator = torch.library.custom_op("detkit::multiscale_roi_align", weighted_sums, mutates_args=())


@_operator.register_fake
def _(maps: list[Tensor], rois: Tensor, level: Tensor, scales: list[float], size: int, samples: int) -> Tensor:
    return rois.new_empty(rois.shape[0], size, size, maps[0].shape[1], dtype=maps[0].dtype).permute(0, 3, 1, 2)


def _vector(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The values as a tensor, also those of a tracer."""
    return torch.stack([torch.scalar_tensor(value, dtype=dtype) for value in values])


def _positions(low: Tensor, high: Tensor, limit: Tensor, size: int, samples: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two cells around each sample of each pooled cell, int64 (R, S, 2M), and their weights.

    In the kernel's order of operations, so that the samples are the same. Those that are further than a cell outside of
    the map weigh nothing.
    """
    step = (high - low).clamp(min=1) / size
    cell = torch.arange(size, device=low.device)[:, None]
    sample = torch.arange(samples, device=low.device) + 0.5
    position = low[:, None, None] + cell * step[:, None, None] + sample * step[:, None, None] / samples
    limit = limit[:, None, None].to(position.dtype)
    inside = (position >= -1) & (position <= limit)
    position = torch.where(inside, position, 0).clamp(min=0).minimum(limit - 1)
    before = position.floor()
    fraction = position - before
    after = (before + 1).minimum(limit - 1)
    index = torch.stack([before, after], dim=-1).flatten(2).long()
    return index, (torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]).flatten(2)
