"""The order of proposals: what was merged last is first, shaken by chance (Uijlings et al. 2013, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .grouping import Hierarchy


def rank(hierarchies: Sequence[Hierarchy], seed: int = 0, min_side: float = 0.0) -> np.ndarray:
    """Boxes of several hierarchies, each once, most object-like first.

    A region's place in its hierarchy, counted from the last merge, is multiplied by a random number between 0 and 1:
    large regions come first, but the hierarchies mix. Initial regions come after the first merge. (OpenCV multiplies
    the number of levels below a region instead, so that small ones come first.) A box that several regions have takes
    the best of their places.

    Args:
        hierarchies: in a fixed order.
        seed: of the random numbers.
        min_side: boxes with a shorter side are left out, in pixels.

    Returns:
        (N, 4) int32, half-open x1 y1 x2 y2.
    """
    boxes = np.concatenate([hierarchy.boxes for hierarchy in hierarchies])
    places = np.concatenate([_places(hierarchy) for hierarchy in hierarchies])
    order = np.argsort(places * np.random.default_rng(seed).random(len(places)), kind="stable")
    boxes = boxes[order]
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)]
    return boxes[_first_of_each(boxes)]


def _places(hierarchy: Hierarchy) -> np.ndarray:
    merges = len(hierarchy.children)
    return np.concatenate([np.full(hierarchy.initial, merges + 1), np.arange(merges, 0, -1)])


def _first_of_each(boxes: np.ndarray) -> np.ndarray:
    """Positions, ascending, at which a box comes up for the first time."""
    # Two numbers compare faster than four; a coordinate is below 2**31.
    corners = boxes.astype(np.int64)
    low, high = corners[:, 0] << 32 | corners[:, 1], corners[:, 2] << 32 | corners[:, 3]
    order = np.lexsort((high, low))
    new = np.ones(len(boxes), bool)
    new[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    return np.sort(order[new])
