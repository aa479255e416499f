"""The order in which OpenCV meets edges of equal weight.

Where a small region has two equally near neighbours, it is absorbed by the one whose edge comes first, and in OpenCV
that is wherever `std::sort`, which is not stable, left it. It happens in one partition of sixty, mostly in flat hue.
For the same partition as OpenCV's (of its builds with GNU's C++ library) the sort is followed here, but only where it
leads: each of its steps parts a range in two, and a range that cannot hold a weight in question is left alone.
"""

from __future__ import annotations

import numpy as np

from detkit.compiled import jit

SMALL = 16  # ranges up to here are sorted by insertion, which leaves equals in their order


@jit
def before(weights: np.ndarray, i: int, j: int) -> bool:
    """Whether the item at place i is to come before the one at place j."""
    return weights[i] < weights[j]


@jit
def swap(weights: np.ndarray, edges: np.ndarray, i: int, j: int) -> None:
    """Exchanges two items."""
    weights[i], weights[j] = weights[j], weights[i]
    edges[i], edges[j] = edges[j], edges[i]


@jit
def part(weights: np.ndarray, edges: np.ndarray, first: int, last: int) -> int:
    """One step of quicksort on first..last-1: the pivot is the median of three and waits in the first place."""
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    if before(weights, a, b):
        pivot = b if before(weights, b, c) else (c if before(weights, a, c) else a)
    else:
        pivot = a if before(weights, a, c) else (c if before(weights, b, c) else b)
    swap(weights, edges, first, pivot)
    low, high = first + 1, last
    while True:
        while before(weights, low, first):
            low += 1
        high -= 1
        while before(weights, first, high):
            high -= 1
        if low >= high:
            return low
        swap(weights, edges, low, high)
        low += 1


@jit
def place_among(wanted: np.ndarray, weight: float) -> int:
    """How many of the wanted weights, ascending, are less than `weight`."""
    low, high = 0, len(wanted)
    while low < high:
        middle = (low + high) >> 1
        if wanted[middle] < weight:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def follow_sort(weights: np.ndarray, edges: np.ndarray, wanted: np.ndarray) -> None:
    """Moves the items as `std::sort` does, as far as needed for the order of those whose weight is wanted; in place.

    Args:
        weights (N,) float32 and edges (N,) uint32: the items.
        wanted: (T,) float32, ascending.
    """
    depth = 0
    while len(weights) >> (depth + 1):
        depth += 1
    # Ranges still to be parted: first, last, least and greatest weight, steps left before std::sort changes its method.
    ranges = [(0, len(weights), np.float32(-1), np.float32(np.inf), 2 * depth)]
    while len(ranges):
        first, last, least, greatest, left = ranges.pop()
        position = place_among(wanted, least)
        if last - first <= SMALL or left == 0 or position == len(wanted) or wanted[position] > greatest:
            continue
        cut = part(weights, edges, first, last)
        pivot = weights[first]
        ranges.append((first, cut, least, pivot, left - 1))
        ranges.append((cut, last, pivot, greatest, left - 1))


@jit
def equal_weight_order(weights, edges, wanted, height, width):
    """Edges of the wanted weights, in the order in which OpenCV meets them.

    Args:
        weights, edges: (E,) all edges of an image with 4 neighbours; see `graph.build_edges`.
        wanted: (T,) float32, ascending.
        height, width: of the image.

    Returns:
        (M,) uint32; edges of different weights are mixed.
    """
    distance = np.empty(2 * height * width, np.float32)
    for i in range(len(edges)):
        distance[edges[i]] = weights[i]
    # OpenCV lists each edge twice, from both ends: of each pixel those up, left, down and right.
    all_weights, all_edges = np.empty(2 * len(edges), np.float32), np.empty(2 * len(edges), np.uint32)
    count = 0
    for y in range(height):
        for x in range(width):
            here = 2 * (y * width + x)
            for there, edge in (
                (y > 0, here - 2 * width + 1),
                (x > 0, here - 2),
                (y + 1 < height, here + 1),
                (x + 1 < width, here),
            ):
                if there:
                    all_weights[count], all_edges[count] = distance[edge], edge
                    count += 1
    follow_sort(all_weights, all_edges, wanted)
    order, found = np.empty(count, np.uint32), 0
    for i in range(count):
        position = place_among(wanted, all_weights[i])
        if position < len(wanted) and wanted[position] == all_weights[i]:
            order[found] = all_edges[i]
            found += 1
    return order[:found].copy()


def settle(
    order: np.ndarray,
    weights: np.ndarray,
    open_edges: np.ndarray,
    edges: np.ndarray,
    wanted: np.ndarray,
    settled: np.ndarray,
) -> None:
    """Puts open edges of the wanted weights in the given order, in place, and marks them as settled.

    Args:
        order: from `equal_weight_order`.
        weights, open_edges: (O,) the open edges' weights and their positions among all edges, ascending.
        edges: (E,) all edges.
        wanted: (T,) float32, ascending.
        settled: (O,) bool, written.
    """
    # An edge comes up twice; the first time counts.
    found, first = np.unique(order, return_index=True)
    for weight in wanted:
        start, stop = np.searchsorted(weights, weight, "left"), np.searchsorted(weights, weight, "right")
        run = open_edges[start:stop]
        open_edges[start:stop] = run[np.argsort(first[np.searchsorted(found, edges[run])])]
        settled[start:stop] = True
