"""How alike two neighbouring regions are: colour, texture, size and fill (Uijlings et al. 2013, section 3.2).

Each measure is between 0 and 1, and a strategy is the mean of some of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detkit.compiled import jit
from detkit.errors import ConfigError

from .regions import Regions

MEASURES = ("colour", "texture", "size", "fill")

#: Histograms are compared as whole numbers of which this is one: sums of whole numbers do not hang on their order, so
#: every processor finds the same, however many it adds at once.
ONE = 1 << 28


def similarities(regions: Regions, pairs: np.ndarray, measures: Sequence[str] = MEASURES) -> np.ndarray:
    """Similarity of pairs of regions, as the mean of the measures.

    colour, texture: the share of the two histograms that is common. size: one minus the share of the image that the
    two take up, so that small regions merge early. fill: one minus the share of the image that their common box has
    beyond them, so that holes are filled.

    Args:
        regions: from `describe`.
        pairs: (E, 2) int, for example `regions.neighbours`.
        measures: some of "colour", "texture", "size" and "fill".

    Returns:
        (E,) float64, 0-1.

    Raises:
        ConfigError: no measure, or an unknown one.
    """
    chosen = choose(measures)
    shares = normalize(regions)
    area = int(regions.sizes.sum())
    pairs = np.ascontiguousarray(pairs, dtype=np.int64).reshape(-1, 2)
    return _compare_pairs(pairs, regions.sizes, regions.boxes, *shares, chosen, area)


def choose(measures: Sequence[str]) -> np.ndarray:
    """(4,) bool: which of `MEASURES` are meant; raises ConfigError as `similarities` does."""
    if not measures or not set(measures) <= set(MEASURES):
        raise ConfigError(f"a strategy is made of {', '.join(MEASURES)}, one at least; this one has {list(measures)}")
    return np.array([name in measures for name in MEASURES])


def normalize(
    regions: Regions, colours: int | None = None, textures: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Histograms of colour and texture, (R, bins) int32 each, that sum to about `ONE` whatever a region's size.

    colours, textures: only that many bins, from the first on; all by default.
    """
    whole = (regions.sizes * np.float64(regions.channels))[:, None]
    colour, texture = regions.colour[:, :colours], regions.texture[:, :textures]
    return (colour * (ONE / whole)).astype(np.int32), (texture * (ONE / (8 * whole))).astype(np.int32)


@jit
def compare(a, b, sizes, boxes, colour, texture, row_a, row_b, chosen, area):
    """The similarity of regions a and b, whose histograms are in row_a and row_b of colour and texture."""
    total, count = 0.0, 0
    if chosen[0]:
        common = 0
        for i in range(colour.shape[1]):
            common += min(colour[row_a, i], colour[row_b, i])
        total += common / ONE
        count += 1
    if chosen[1]:
        common = 0
        for i in range(texture.shape[1]):
            common += min(texture[row_a, i], texture[row_b, i])
        total += common / ONE
        count += 1
    both = np.int64(sizes[a]) + np.int64(sizes[b])
    if chosen[2]:
        total += max(1.0 - both / area, 0.0)
        count += 1
    if chosen[3]:
        width = np.int64(max(boxes[a, 2], boxes[b, 2])) - min(boxes[a, 0], boxes[b, 0])
        height = np.int64(max(boxes[a, 3], boxes[b, 3])) - min(boxes[a, 1], boxes[b, 1])
        total += max(1.0 - (width * height - both) / area, 0.0)
        count += 1
    return total / count


@jit
def _compare_pairs(pairs, sizes, boxes, colour, texture, chosen, area):
    out = np.empty(len(pairs), np.float64)
    for i in range(len(pairs)):
        a, b = pairs[i, 0], pairs[i, 1]
        out[i] = compare(a, b, sizes, boxes, colour, texture, a, b, chosen, area)
    return out
