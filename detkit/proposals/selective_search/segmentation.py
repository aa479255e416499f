"""Initial regions: Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004); `forest` holds the merging.

An edge of the graph is one number: `pixel * directions + direction`, where `pixel` is its upper (or left) end in
reading order. The directions are right and down, with 8 neighbours also down-right and down-left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detkit.errors import ConfigError
from detkit.proposals.selective_search import forest
from detkit.proposals.selective_search.colour_spaces import as_channels
from detkit.system import jit


class Segmentations(NamedTuple):
    """Partitions of one image, one for each k, as unions of common pieces.

    Attributes:
        pieces: (H, W) int32, the piece that each pixel lies in, 0..P-1 in reading order of their first pixels.
        regions: (K, P) int32, the region of each piece, for each k; 0..R-1 likewise.
    """

    pieces: np.ndarray
    regions: np.ndarray

    def labels(self, index: int = 0) -> np.ndarray:
        """The label map (H, W) int32 of the k at that index."""
        return self.regions[index][self.pieces]


def segment(
    image: np.ndarray,
    ks: Sequence[float],
    sigma: float = 0.8,
    min_size: int | Sequence[int] = 100,
    connectivity: int = 4,
) -> Segmentations:
    """The initial regions of an image for several k, for little more than the cost of one.

    Args:
        image: uint8 (H, W, C), see `to_colour_space`.
        ks: a larger k gives larger regions; in units of colour distance times pixels.
        sigma: of the Gaussian that smooths the image first, in pixels.
        min_size: regions of fewer pixels are absorbed by a neighbour; one for all k, or one for each.
        connectivity: 4 (OpenCV's graph) or 8 (the authors') neighbours of a pixel.

    Returns:
        With 4 neighbours the result of OpenCV's GraphSegmentation on the same image, except where a small region has
        two equally near neighbours: of those the one whose edge comes first absorbs it here, and any of them in OpenCV.

    Raises:
        ConfigError: no k, a k or sigma that is not positive, or another number of neighbours than 4 or 8.
        ImageTypeError: an image of another type or shape.
    """
    image = as_channels(image)
    least = [min_size] * len(ks) if isinstance(min_size, int) else list(min_size)
    if not len(ks) or min(ks) <= 0 or sigma <= 0 or connectivity not in (4, 8) or len(least) != len(ks):
        raise ConfigError(
            f"segmentation needs one or more k above 0 (here {list(ks)}), a min_size for each or for all (here "
            f"{min_size}), sigma above 0 (here {sigma}) and 4 or 8 neighbours (here {connectivity})"
        )
    height, width, _ = image.shape
    steps = edge_steps(width, connectivity)
    weights, edges = unpack(sort_edges(build_edges(smooth(image, sigma), connectivity)))
    parents, sizes, internal, open_edges = forest.merge_common(weights, edges, steps, height * width, min(ks))
    atom_of, sizes, internal, ends_a, ends_b = forest.number_atoms(parents, sizes, internal, edges, open_edges, steps)
    regions = np.empty((len(ks), len(sizes)), np.int32)
    for row, k in enumerate(ks):
        tree, tree_sizes, refused = forest.merge_atoms(weights[open_edges], ends_a, ends_b, sizes, internal, k)
        forest.absorb_small(refused, ends_a, ends_b, tree, tree_sizes, least[row])
        regions[row] = forest.number_regions(tree)
    piece, first = forest.join_atoms(regions)
    return Segmentations(piece[atom_of].reshape(height, width), regions[:, first])


def smooth(image: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (H, W, C): each channel under a Gaussian of that sigma, as OpenCV computes it."""
    import cv2

    smoothed = image.astype(np.float32)
    return cv2.GaussianBlur(smoothed, (0, 0), sigma, dst=smoothed, sigmaY=sigma).reshape(image.shape)


def edge_steps(width: int, connectivity: int) -> np.ndarray:
    """(D,) int64: for each direction, how many pixels after its first end, in reading order, an edge's other end is."""
    return np.array([1, width, width + 1, width - 1][: connectivity // 2], dtype=np.int64)


@jit
def build_edges(image: np.ndarray, connectivity: int) -> np.ndarray:
    """Euclidean distances of the colours of neighbouring pixels of an image (H, W, C) float32.

    Returns uint64 (E,): the bits of the distance as float32, shifted by 32 bits, plus the edge. Each step is rounded to
    single precision: the distances are equal to OpenCV's (ximgproc, graphsegmentation.cpp) to the last bit.
    """
    height, width, channels = image.shape
    directions = connectivity // 2
    items = np.empty(directions * height * width, np.uint64)
    total = np.empty(width, np.float32)
    bits = total.view(np.uint32)
    count = 0
    for y in range(height):
        for direction in range(directions):
            y2 = y if direction == 0 else y + 1
            if y2 == height:
                continue
            first = 1 if direction == 3 else 0
            stop = width if direction == 1 or direction == 3 else width - 1
            step = (1, 0, 1, -1)[direction]
            if channels == 3:  # written out, so that the compiler uses vector instructions
                for x in range(first, stop):
                    a = image[y, x, 0] - image[y2, x + step, 0]
                    b = image[y, x, 1] - image[y2, x + step, 1]
                    c = image[y, x, 2] - image[y2, x + step, 2]
                    total[x] = a * a + b * b + c * c
            else:
                for x in range(first, stop):
                    total[x] = 0
                    for channel in range(channels):
                        a = image[y, x, channel] - image[y2, x + step, channel]
                        total[x] += a * a
            for x in range(first, stop):
                total[x] = np.sqrt(total[x])
            for x in range(first, stop):
                edge = np.uint64((y * width + x) * directions + direction)
                items[count + x - first] = np.uint64(bits[x]) << np.uint64(32) | edge
            count += max(stop - first, 0)
    return items[:count]


@jit
def sort_edges(items: np.ndarray) -> np.ndarray:
    """The edges in ascending order of weight; equal weights stay in their order. ``items`` are overwritten.

    A radix sort of the weights' bits, which have the order of the numbers since none is negative: exact, and about ten
    times as fast as a sort by comparison.
    """
    count = len(items)
    lowest, highest = np.uint64(0xFFFFFFFF), np.uint64(0)
    for i in range(count):
        # Zero has bits far from all other weights: the range of the keys leaves it out, to need fewer digits.
        key = items[i] >> np.uint64(32)
        lowest = min(lowest, key if key != 0 else lowest)
        highest = max(highest, key)
    below = min(lowest, highest) - np.uint64(1) if highest != 0 else np.uint64(0)
    width = 1  # of a digit, in bits; three digits
    while highest - below >= np.uint64(1) << np.uint64(3 * width):
        width += 1
    mask = np.uint64((1 << width) - 1)
    offsets = np.zeros((3, 1 << width), np.int64)
    for i in range(count):
        key = items[i] >> np.uint64(32)
        key = key - below if key != 0 else key
        offsets[0, key & mask] += 1
        offsets[1, (key >> np.uint64(width)) & mask] += 1
        offsets[2, key >> np.uint64(2 * width)] += 1
    source, target = items, np.empty(count, np.uint64)
    for digit in range(3):
        shift, before = np.uint64(digit * width), 0
        offset = offsets[digit]
        for value in range(len(offset)):
            before, offset[value] = before + offset[value], before
        for i in range(count):
            key = source[i] >> np.uint64(32)
            value = ((key - below if key != 0 else key) >> shift) & mask
            target[offset[value]] = source[i]
            offset[value] += 1
        source, target = target, source
    return source


def unpack(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (E,) float32 and edges (E,) uint32 of the items of `build_edges`; views of their memory."""
    if sys.byteorder == "little":
        return items.view(np.float32)[1::2], items.view(np.uint32)[0::2]
    return items.view(np.float32)[0::2], items.view(np.uint32)[1::2]
