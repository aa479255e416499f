"""Sliding windows: boxes of fixed shapes all over the image, whatever is in it. The baseline for other proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.errors import ConfigError


def sliding_windows(
    size: tuple[int, int],
    scales: Sequence[float] = (64.0, 128.0, 256.0),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    stride: float = 32.0,
) -> Tensor:
    """Windows of every scale and ratio, a stride apart, all within the image.

    The last window of a row or column ends at the image's border, so that the windows of a shape cover the image unless
    the stride is larger than they are. A window that is wider or higher than the image is cut to it.

    No window is better than another, but detectors use only the first so many proposals. So the shapes (a scale and a
    ratio) take turns, and the windows of a shape come in an order whose every beginning is spread over the image. The
    same arguments give the same order.

    Args:
        size: (height, width) of the image, in pixels.
        scales: square root of a window's area, in pixels.
        ratios: height over width, as everywhere in detkit.
        stride: from one window to the next along both axes, in pixels.

    Returns:
        float32 (N, 4), x1 y1 x2 y2, half-open; none twice.

    Raises:
        ConfigError: a number that is not positive and finite, or no scale or no ratio.
    """
    height, width = size
    numbers = [height, width, stride, *scales, *ratios]
    if not (len(scales) and len(ratios) and all(0 < number < math.inf for number in numbers)):
        raise ConfigError(
            f"sliding windows need a size, one scale, one ratio and a stride at least, all above 0; here size {size}, "
            f"scales {list(scales)}, ratios {list(ratios)}, stride {stride}"
        )
    windows: list[Tensor] = []
    turns: list[Tensor] = []
    shapes: set[tuple[float, ...]] = set()
    for scale in scales:
        for ratio in ratios:
            shape = (min(scale * math.sqrt(ratio), height), min(scale / math.sqrt(ratio), width))
            key = tuple(round(side, 3) for side in shape)
            if key in shapes:  # two shapes that are equal once they are cut to the image
                continue
            shapes.add(key)
            y, x = (_positions(extent, side, stride) for extent, side in zip(size, shape, strict=True))
            y1, x1 = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
            boxes = torch.stack([x1, y1, x1 + shape[1], y1 + shape[0]], 1)
            windows.append(boxes[_spread(len(y), len(x))])
            turns.append(torch.arange(len(boxes)))
    # In double precision so far: the far side of the last window is the border itself.
    limit = torch.tensor([width, height, width, height], dtype=torch.float64)
    return torch.cat(windows)[torch.cat(turns).argsort(stable=True)].minimum(limit).float()


def _positions(extent: float, side: float, stride: float) -> Tensor:
    """The first coordinates of windows of that side: every stride, and one whose window ends with the image."""
    last = max(extent - side, 0.0)
    positions = torch.arange(0, last, stride, dtype=torch.float64)
    # No window a thousandth of a pixel before the last.
    return torch.cat([positions[positions < last - 1e-3], torch.tensor([last], dtype=torch.float64)])


def _spread(rows: int, columns: int) -> Tensor:
    """The cells of a grid, numbered row by row, in an order whose every beginning is spread over the grid.

    As in a dither mask: cells below a threshold lie evenly apart, whatever the threshold (M. Roberts, "The unreasonable
    effectiveness of quasirandom sequences", 2018; the numbers are 1/g and 1/g^2, g the root of g^3 = g + 1).
    """
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return (0.7548776662466927 * x + 0.5698402909980532 * y).frac().flatten().argsort(stable=True)
