"""Hierarchical grouping: the two most similar neighbours become one region, again and again (Uijlings et al. 2013)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detkit.compiled import jit

from .regions import Regions
from .similarity import MEASURES, ONE, choose, compare, normalize


class Hierarchy(NamedTuple):
    """All regions that one grouping has: the R initial ones, then the M merged ones in the order they were made.

    Attributes:
        boxes: (R + M, 4) int32, half-open x1 y1 x2 y2.
        sizes: (R + M,) int32, pixels.
        children: (M, 2) int32, the two regions that each merged one was made of.
        similarity: (M,) float64, how alike those two were.
        levels: (R + M,) int32, 1 for initial regions, else one more than the higher of the two children.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    children: np.ndarray
    similarity: np.ndarray
    levels: np.ndarray

    @property
    def initial(self) -> int:
        """R."""
        return len(self.sizes) - len(self.children)


def group(regions: Regions, measures: Sequence[str] = MEASURES) -> Hierarchy:
    """Groups regions until no two touch. Of equally similar pairs the one that was found first goes first.

    Args:
        regions: from `describe`.
        measures: what similarity is the mean of; see `similarities`.

    Raises:
        ConfigError: no measure, or an unknown one.
    """
    chosen = choose(measures)
    count = len(regions.sizes)
    sizes, boxes = np.zeros(2 * count - 1, np.int32), np.zeros((2 * count - 1, 4), np.int32)
    sizes[:count], boxes[:count] = regions.sizes, regions.boxes
    columns = (regions.colour.shape[1] * chosen[0], regions.texture.shape[1] * chosen[1])
    counts = np.concatenate([regions.colour[:, : columns[0]], regions.texture[:, : columns[1]]], axis=1)
    colour, texture = normalize(regions, *columns)
    area = int(regions.sizes.sum())
    arrays = (sizes, boxes, regions.neighbours, counts, colour, texture)
    return Hierarchy(*_group(count, *arrays, regions.channels, chosen, area))


@jit
def _find(merged_into, region):
    """The region that `region` is part of by now."""
    while merged_into[region] >= 0:
        above = merged_into[region]
        if merged_into[above] >= 0:
            merged_into[region] = merged_into[above]
        region = above
    return region


@jit
def _list_neighbours(neighbours, regions, room):
    """A linked list of neighbours for each region: its first and last cell, and of each cell the next and the region.

    -1 is no cell.
    """
    first, last = np.full(room, -1, np.int32), np.full(room, -1, np.int32)
    following, other = np.full(2 * len(neighbours), -1, np.int32), np.empty(2 * len(neighbours), np.int32)
    for cell in range(2 * len(neighbours)):
        region = neighbours[cell >> 1, cell & 1]
        other[cell] = neighbours[cell >> 1, 1 - (cell & 1)]
        if last[region] < 0:
            first[region] = cell
        else:
            following[last[region]] = cell
        last[region] = cell
    return first, last, following, other


@jit
def _merge_histograms(counts, colour, texture, a, b, whole):
    """Adds row b of the counts to row a, and renews row a of the shares; `whole` is pixels times channels."""
    colours = colour.shape[1]
    for i in range(counts.shape[1]):
        counts[a, i] += counts[b, i]
    for i in range(colours):
        colour[a, i] = np.int32(counts[a, i] * (ONE / whole))
    for i in range(texture.shape[1]):
        texture[a, i] = np.int32(counts[a, colours + i] * (ONE / (8 * whole)))


@jit
def _group(regions, sizes, boxes, neighbours, counts, colour, texture, channels, chosen, area):
    """See `group`.

    Args:
        regions: R.
        sizes, boxes: (2 R - 1,) and (2 R - 1, 4) int32; those of merged regions are written.
        counts: (R, D) int32, histograms of colour and texture side by side, in pixels; overwritten.
        colour, texture: the same as shares; D columns together; overwritten.
    """
    room = len(sizes)
    children, similarity = np.empty((room - regions, 2), np.int32), np.empty(room - regions, np.float64)
    levels = np.ones(room, np.int32)
    merged_into = np.full(room, -1, np.int32)
    row = np.arange(room)  # where a region's histograms are: those of a merged one take the place of its first child's
    first, last, following, other = _list_neighbours(neighbours, regions, room)
    met = np.full(room, -1, np.int32)
    heap = [(0.0, np.int64(0), np.int32(0), np.int32(0)) for _ in range(0)]
    for i in range(len(neighbours)):
        a, b = neighbours[i, 0], neighbours[i, 1]
        heap.append((-compare(a, b, sizes, boxes, colour, texture, a, b, chosen, area), np.int64(i), a, b))
    heapq.heapify(heap)
    found, made = len(neighbours), regions
    while len(heap):
        negative, _, a, b = heapq.heappop(heap)
        if merged_into[a] >= 0 or merged_into[b] >= 0:
            continue
        new = np.int32(made)
        made += 1
        children[new - regions, 0], children[new - regions, 1] = a, b
        similarity[new - regions] = -negative
        merged_into[a] = merged_into[b] = new
        sizes[new] = sizes[a] + sizes[b]
        levels[new] = max(levels[a], levels[b]) + 1
        for i in range(2):
            boxes[new, i] = min(boxes[a, i], boxes[b, i])
            boxes[new, i + 2] = max(boxes[a, i + 2], boxes[b, i + 2])
        row[new] = row[a]
        _merge_histograms(counts, colour, texture, row[a], row[b], sizes[new] * np.float64(channels))
        # The lists of both neighbours, one after the other; who is met twice, or is now inside, leaves the list.
        following[last[a]] = first[b]
        first[new], last[new] = first[a], last[b]
        before, cell = -1, first[new]
        while cell >= 0:
            region = _find(merged_into, other[cell])
            if region == new or met[region] == new:
                if before < 0:
                    first[new] = following[cell]
                else:
                    following[before] = following[cell]
            else:
                met[region], other[cell] = new, region
                value = compare(new, region, sizes, boxes, colour, texture, row[new], row[region], chosen, area)
                heapq.heappush(heap, (-value, np.int64(found), new, np.int32(region)))
                found += 1
                before = cell
            cell = following[cell]
        last[new] = before
    return boxes[:made], sizes[:made], children[: made - regions], similarity[: made - regions], levels[:made]
