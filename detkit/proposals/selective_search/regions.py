"""Regions: their sizes, boxes, neighbours and histograms of colour and texture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from detkit.proposals.selective_search import texture
from detkit.proposals.selective_search.segmentation import Segmentations
from detkit.system import jit

COLOUR_BINS = 25


class Regions(NamedTuple):
    """R regions of one image in one colour space.

    Attributes:
        sizes: (R,) int32, pixels.
        boxes: (R, 4) int32, half-open x1 y1 x2 y2.
        neighbours: (E, 2) int32, pairs of regions that touch, the smaller number first, ascending.
        colour: (R, 25 C) int32, pixels in each bin of each channel.
        texture: (R, 80 C) int32, pixels in each bin of each of eight directions of each channel.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    neighbours: np.ndarray
    colour: np.ndarray
    texture: np.ndarray

    @property
    def channels(self) -> int:
        """C."""
        return self.colour.shape[1] // COLOUR_BINS


def describe(image: np.ndarray, segmentations: Segmentations) -> list[Regions]:
    """The regions for each k of an image, uint8 (H, W, C), in the colour space of the search.

    Each pixel is visited once, whatever the number of k.
    """
    labels, count = segmentations.pieces, segmentations.regions.shape[1]
    counts = _count(image, texture.texture_bins(image), labels, count)
    pieces = (*_measure(labels, count), counts, _pairs(_touching(labels)))
    return [_merge(pieces, region) for region in segmentations.regions]


def _merge(pieces: tuple[np.ndarray, ...], region: np.ndarray) -> Regions:
    sizes, boxes, counts, touching = pieces
    sizes, boxes, counts = _add_up(sizes, boxes, counts, region, int(region.max()) + 1)
    neighbours = _pairs(_distinct(region[touching]))
    colours = counts.shape[1] // (COLOUR_BINS + 2 * texture.BINS * texture.AXES) * COLOUR_BINS
    return Regions(sizes, boxes, neighbours, counts[:, :colours], _spread(counts[:, colours:]))


@jit
def _measure(labels, count):
    """Sizes (count,) and boxes (count, 4) int32 of the labels (H, W), run by run along the rows."""
    height, width = labels.shape
    sizes, boxes = np.zeros(count, np.int32), np.zeros((count, 4), np.int32)
    for label in range(count):
        boxes[label, 0], boxes[label, 1] = width, height
    for y in range(height):
        x = 0
        while x < width:
            label, start = labels[y, x], x
            while x < width and labels[y, x] == label:
                x += 1
            sizes[label] += x - start
            box = boxes[label]
            box[0], box[1], box[2], box[3] = min(box[0], start), min(box[1], y), max(box[2], x), y + 1
    return sizes, boxes


@jit
def _count(image, textures, labels, count):
    """int32 (count, 105 C): pixels of each label in each bin of colour, then of texture (20 of each axis)."""
    height, width, channels = image.shape
    axes, step = len(textures), 2 * texture.BINS
    colours = channels * COLOUR_BINS
    counts = np.zeros((count, colours + channels * axes * step), np.int32)
    for y in range(height):
        for x in range(width):
            row = counts[labels[y, x]]
            for c in range(channels):
                row[c * COLOUR_BINS + ((np.uint32(image[y, x, c]) * np.uint32(COLOUR_BINS)) >> np.uint32(8))] += 1
                for axis in range(axes):
                    row[colours + (c * axes + axis) * step + textures[axis, y, x * channels + c]] += 1
    return counts


@jit
def _spread(counts):
    """Counts by axis, int32 (R, n * 20), to counts by direction.

    What rises along an axis is flat in the falling direction, and vice versa. Flat pixels are in the last bin of the
    falling direction and in the first of the rising one.
    """
    out = np.empty(counts.shape, np.int32)
    bins = texture.BINS
    for r in range(len(counts)):
        for start in range(0, counts.shape[1], 2 * bins):
            falling, rising = 0, 0
            for b in range(bins):
                falling += counts[r, start + b]
                rising += counts[r, start + bins + b]
                out[r, start + b], out[r, start + bins + b] = counts[r, start + b], counts[r, start + bins + b]
            out[r, start + bins - 1] += rising
            out[r, start + bins] += falling
    return out


@jit
def _add_up(sizes, boxes, counts, region, count):
    """Sizes, boxes and counts of ``count`` regions from those of their pieces, given the region of each piece."""
    out_sizes, out_boxes = np.zeros(count, np.int32), np.empty((count, 4), np.int32)
    out_counts = np.zeros((count, counts.shape[1]), np.int32)
    for piece in range(len(sizes)):
        r = region[piece]
        for i in range(2):
            if out_sizes[r] == 0:
                out_boxes[r, i], out_boxes[r, i + 2] = boxes[piece, i], boxes[piece, i + 2]
            out_boxes[r, i] = min(out_boxes[r, i], boxes[piece, i])
            out_boxes[r, i + 2] = max(out_boxes[r, i + 2], boxes[piece, i + 2])
        out_sizes[r] += sizes[piece]
        for i in range(counts.shape[1]):
            out_counts[r, i] += counts[piece, i]
    return out_sizes, out_boxes, out_counts


@jit
def _touching(labels):
    """Pairs of labels side by side, one above the other or, down to the right, corner to corner; see `_distinct`.

    These are OpenCV's pairs: regions that touch only within the first row or column are no neighbours, unless the image
    has no other row or column.
    """
    height, width = labels.shape
    pairs, count = np.empty((3 * height * width, 2), np.int32), 0
    for y in range(min(height - 1, 1), height):
        for x in range(min(width - 1, 1), width):
            here = labels[y, x]
            if x > 0 and labels[y, x - 1] != here:
                pairs[count, 0], pairs[count, 1] = here, labels[y, x - 1]
                count += 1
            if y > 0 and labels[y - 1, x] != here:
                pairs[count, 0], pairs[count, 1] = here, labels[y - 1, x]
                count += 1
            if x > 0 and y > 0 and labels[y - 1, x - 1] != here:
                pairs[count, 0], pairs[count, 1] = here, labels[y - 1, x - 1]
                count += 1
    return _distinct(pairs[:count])


@jit
def _distinct(pairs):
    """Each pair (a, b) of two different numbers of `pairs` (N, 2) once: (E,) int64, (smaller << 32) | larger."""
    size = 16
    while size < 2 * len(pairs):
        size *= 2
    slots = np.empty(size, np.int64)
    for i in range(size):
        slots[i] = -1
    keys, count = np.empty(len(pairs), np.int64), 0
    last = np.int64(-1)
    for i in range(len(pairs)):
        a, b = np.int64(pairs[i, 0]), np.int64(pairs[i, 1])
        key = (min(a, b) << 32) | max(a, b)
        if a == b or key == last:
            continue
        last = key
        slot = (key * 0x9E3779B97F4A7C1 >> 20) & (size - 1)
        while slots[slot] != -1 and slots[slot] != key:
            slot = (slot + 1) & (size - 1)
        if slots[slot] == -1:
            slots[slot] = key
            keys[count] = key
            count += 1
    return keys[:count].copy()


def _pairs(keys: np.ndarray) -> np.ndarray:
    """(E, 2) int32, ascending, of the keys from `_distinct`."""
    keys = np.sort(keys)
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32)
