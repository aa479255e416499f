"""Hierarchical grouping: the two most similar neighbours become one region, again and again (Uijlings et al. 2013)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detkit.errors import ConfigError
from detkit.proposals.selective_search.regions import Regions
from detkit.system import jit

MEASURES = ("colour", "texture", "size", "fill")

#: Shares of histograms are compared as integers in units of 1 / ONE: a sum of integers does not depend on the order of
#: its terms, so the result is the same on every processor, also where several terms are added at once.
ONE = 1 << 28


class Hierarchy(NamedTuple):
    """All regions of one grouping: the R initial ones, then the M merged ones in the order of their merges.

    Attributes:
        boxes: (R + M, 4) int32, half-open x1 y1 x2 y2.
        sizes: (R + M,) int32, pixels.
        children: (M, 2) int32, the two regions that each merge joined.
        similarity: (M,) float64, of those two.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    children: np.ndarray
    similarity: np.ndarray

    @property
    def initial(self) -> int:
        """R."""
        return len(self.sizes) - len(self.children)

    def regions_after(self, merges: int) -> np.ndarray:
        """The regions after so many merges (0 to M): (R,) int32, for each initial region the one that it is part of.

        With the label map of the initial regions, ``hierarchy.regions_after(n)[labels]`` is the partition of the image.

        Raises:
            ConfigError: there are not so many merges.
        """
        if not 0 <= merges <= len(self.children):
            raise ConfigError(
                f"this grouping has {len(self.children)} merges: give a number from 0 to that, not {merges}"
            )
        region = np.arange(self.initial + merges, dtype=np.int32)
        for merge in range(merges - 1, -1, -1):  # the last ones first: a merged region is known before its children
            region[self.children[merge]] = region[self.initial + merge]
        return region[: self.initial]


def group(regions: Regions, measures: Sequence[str] = MEASURES) -> Hierarchy:
    """Merge the most similar pair of neighbours until none is left; of equally similar pairs the one compared first.

    Args:
        regions: from `describe`.
        measures: some of `MEASURES`, each from 0 to 1 (section 3.2); the similarity is their mean. colour, texture: the
            intersection of the two normalized histograms. size: one minus the share of the image that the two regions
            cover, so that small regions merge early. fill: one minus the share of the image that lies in their common
            box but in neither of them, so that holes are filled.

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


def choose(measures: Sequence[str]) -> np.ndarray:
    """(4,) bool: which of `MEASURES` are chosen; raises ConfigError as `group` does."""
    if not measures or not set(measures) <= set(MEASURES):
        raise ConfigError(f"a strategy is one or more of {', '.join(MEASURES)}; this one is {list(measures)}")
    return np.array([name in measures for name in MEASURES])


def normalize(regions: Regions, colours: int, textures: int) -> tuple[np.ndarray, np.ndarray]:
    """The first bins of colour and texture, int32, that sum to about `ONE` over all bins, whatever a region's size."""
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
def _find(merged_into, region):
    """The merged region that `region` is now part of."""
    while merged_into[region] >= 0:
        above = merged_into[region]
        if merged_into[above] >= 0:
            merged_into[region] = merged_into[above]
        region = above
    return region


@jit
def _list_neighbours(neighbours, regions, room):
    """A linked list of neighbours for each region.

    Returns the first and last cell of each region, int32 (room,), and the next cell and the neighbour of each cell,
    int32 (2 E,). -1 is no cell.
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
    """Add row b of the counts to row a, and compute row a of the shares again; `whole` is pixels times channels."""
    colours = colour.shape[1]
    for i in range(counts.shape[1]):
        counts[a, i] += counts[b, i]
    for i in range(colours):
        colour[a, i] = np.int32(counts[a, i] * (ONE / whole))
    for i in range(texture.shape[1]):
        texture[a, i] = np.int32(counts[a, colours + i] * (ONE / (8 * whole)))


@jit
def _group(regions, sizes, boxes, neighbours, counts, colour, texture, channels, chosen, area):
    """See `group`; the arrays have room for 2 R - 1 regions, and the histograms are overwritten."""
    room = len(sizes)
    children, similarity = np.empty((room - regions, 2), np.int32), np.empty(room - regions, np.float64)
    merged_into = np.full(room, -1, np.int32)
    row = np.arange(room)  # of a region's histograms: a merged region overwrites its first child's
    first, last, following, other = _list_neighbours(neighbours, regions, room)
    seen = np.full(room, -1, np.int32)
    heap = [(0.0, np.int64(0), np.int32(0), np.int32(0)) for _ in range(0)]
    for i in range(len(neighbours)):
        a, b = neighbours[i, 0], neighbours[i, 1]
        heap.append((-compare(a, b, sizes, boxes, colour, texture, a, b, chosen, area), np.int64(i), a, b))
    heapq.heapify(heap)
    compared, made = len(neighbours), regions
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
        for i in range(2):
            boxes[new, i] = min(boxes[a, i], boxes[b, i])
            boxes[new, i + 2] = max(boxes[a, i + 2], boxes[b, i + 2])
        row[new] = row[a]
        _merge_histograms(counts, colour, texture, row[a], row[b], sizes[new] * np.float64(channels))
        # The lists of neighbours of both, joined; a region that occurs twice or is now inside leaves the list.
        following[last[a]] = first[b]
        first[new], last[new] = first[a], last[b]
        before, cell = -1, first[new]
        while cell >= 0:
            region = _find(merged_into, other[cell])
            if region == new or seen[region] == new:
                if before < 0:
                    first[new] = following[cell]
                else:
                    following[before] = following[cell]
            else:
                seen[region], other[cell] = new, region
                value = compare(new, region, sizes, boxes, colour, texture, row[new], row[region], chosen, area)
                heapq.heappush(heap, (-value, np.int64(compared), new, np.int32(region)))
                compared += 1
                before = cell
            cell = following[cell]
        last[new] = before
    return boxes[:made], sizes[:made], children[: made - regions], similarity[: made - regions]
