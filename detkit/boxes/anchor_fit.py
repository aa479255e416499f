"""How well anchors fit the objects of a data set, and which would fit better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RATIOS = ((0.5, 1.0, 2.0), (0.33, 1.0, 3.0), (0.25, 0.5, 1.0, 2.0, 4.0))
SHIFTS = tuple(2.0 ** (step / 2) for step in range(-8, 5))  # of all sizes
IOU = 0.5
GAIN = 0.02  # share of objects that a change has to reach in addition


class AnchorFit(NamedTuple):
    """Anchors, and the share of the objects that one of them reaches.

    Attributes:
        sizes: square roots of the areas, in pixels of the resized image.
        ratios: heights over widths.
        share: 0 to 1.
    """

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    share: float


def best_iou(sides: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """(N,) the largest IoU of each object with an anchor that has its centre: more no anchor of the grid reaches.

    Args:
        sides: (N, 2), widths and heights.
        sizes, ratios: of the anchors.
    """
    anchors = np.array([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios])
    shared = np.minimum(sides[:, None], anchors[None]).prod(2)
    union = sides.prod(1)[:, None] + anchors.prod(1)[None] - shared
    return (shared / np.maximum(union, 1e-9)).max(1, initial=0)


def fit_anchors(sides: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> tuple[AnchorFit, AnchorFit]:
    """The fit of given anchors, and of the nearest ones that reach more: all sizes shifted, or other ratios.

    Of sets that reach nearly as many (`GAIN`) the one with fewer ratios and the smaller shift is taken.

    Args:
        sides: (N, 2) widths and heights of the objects in the resized images; N > 0.
        sizes, ratios: as they are.
    """

    def share(some_sizes: Sequence[float], some_ratios: Sequence[float]) -> float:
        return float((best_iou(sides, some_sizes, some_ratios) >= IOU).mean())

    given = AnchorFit(tuple(sizes), tuple(ratios), share(sizes, ratios))
    best = given
    for some_ratios in (tuple(ratios), *RATIOS):
        for shift in sorted(SHIFTS, key=lambda value: abs(np.log2(value))):
            shifted = tuple(float(round(size * shift)) or 1.0 for size in sizes)
            if (reached := share(shifted, some_ratios)) > best.share + GAIN:
                best = AnchorFit(shifted, some_ratios, reached)
    return given, best
