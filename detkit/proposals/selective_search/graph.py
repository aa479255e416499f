"""The graph of an image: neighbouring pixels, how far apart their colours are, and all edges in that order.

An edge is one number: `pixel * directions + direction`, where `pixel` is its upper (or left) end in reading order. The
directions are right and down, with 8 neighbours also down-right and down-left.
"""

from __future__ import annotations

import sys

import numpy as np

from detkit.compiled import jit


def edge_steps(width: int, connectivity: int) -> np.ndarray:
    """How many pixels further, in reading order, an edge's other end lies; int64, one for each direction."""
    return np.array([1, width, width + 1, width - 1][: connectivity // 2], dtype=np.int64)


@jit
def build_edges(image: np.ndarray, connectivity: int) -> np.ndarray:
    """Euclidean distances of the colours of neighbouring pixels.

    Args:
        image: (H, W, C) float32.
        connectivity: 4 or 8 neighbours of a pixel.

    Returns:
        uint64 (E,): the bits of the distance as float32, 32 places up, and the edge. Everything is rounded to single
        precision as in OpenCV (ximgproc, graphsegmentation.cpp): the distances are equal to the last bit.
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
            if channels == 3:  # written out, so that several pixels are computed at once
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
    """The edges in ascending order of weight; equal weights stay in the order they came in.

    A radix sort of the weights' bits, which order as the numbers do since none is negative: exact, and some ten times
    as fast as comparing.

    Args:
        items: uint64 (E,), see `build_edges`; overwritten.
    """
    count = len(items)
    lowest, highest = np.uint64(0xFFFFFFFF), np.uint64(0)
    for i in range(count):
        # Zero is far from all other weights: left out of the range, it costs no digits.
        key = items[i] >> np.uint64(32)
        lowest = min(lowest, key if key != 0 else lowest)
        highest = max(highest, key)
    below = min(lowest, highest) - np.uint64(1) if highest != 0 else np.uint64(0)
    width = 1  # of a digit, in bits; three digits
    while highest - below >= np.uint64(1) << np.uint64(3 * width):
        width += 1
    mask = np.uint64((1 << width) - 1)
    places = np.zeros((3, 1 << width), np.int64)
    for i in range(count):
        key = items[i] >> np.uint64(32)
        key = key - below if key != 0 else key
        places[0, key & mask] += 1
        places[1, (key >> np.uint64(width)) & mask] += 1
        places[2, key >> np.uint64(2 * width)] += 1
    source, target = items, np.empty(count, np.uint64)
    for digit in range(3):
        shift, before = np.uint64(digit * width), 0
        place = places[digit]
        for value in range(len(place)):
            before, place[value] = before + place[value], before
        for i in range(count):
            key = source[i] >> np.uint64(32)
            value = ((key - below if key != 0 else key) >> shift) & mask
            target[place[value]] = source[i]
            place[value] += 1
        source, target = target, source
    return source


def unpack(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (E,) float32 and edges (E,) uint32 of items as `build_edges` makes them; they share memory."""
    if sys.byteorder == "little":
        return items.view(np.float32)[1::2], items.view(np.uint32)[0::2]
    return items.view(np.float32)[0::2], items.view(np.uint32)[1::2]
