"""The compiled loops of warping.

A crop is resized first along its rows and then down its columns: of each row of the image only what the crop needs is
resampled, once, and stays in the fastest cache until the two rows that blend into the next row of the crop have moved
on. All that reaches memory is the crop itself, once and in its order.
"""

from __future__ import annotations

import numpy as np

from detkit.system import jit


@jit
def place_samples(start, extent, length, lower, upper, weights):
    """Where the samples of one axis lie, pixel centres at halves: fills the first `length` entries of the arrays.

    Whole numbers all the way: nothing is lost far from the image's corner.

    Args:
        start, extent: the source's first pixel, and how many.
        length: pixels of the target, at least 1.
        lower, upper, weights: the two pixels that a sample lies between, and the share of `upper`; beyond the centres
            of the source's outermost pixels both are that pixel.
    """
    for i in range(length):
        doubled = (2 * i + 1) * extent - length  # the sample's place, counted from the source, times 2 * length
        below = doubled // (2 * length)
        weights[i] = np.float32(doubled - below * 2 * length) / np.float32(2 * length)
        lower[i] = start + max(below, 0)
        upper[i] = start + min(below + 1, extent - 1)


@jit
def resample(image, y, left, right, weights, columns, row, channel_step, column_step):
    """Row y of the image (3, H, W) at so many columns; their channels lie in `row` at these steps (unsigned)."""
    # All three channels at once: places and weights are looked up once instead of three times.
    for i in range(np.uint64(columns)):
        a, b, weight = left[i], right[i], weights[i]
        red, green, blue = image[0, y, a], image[1, y, a], image[2, y, a]
        at = i * column_step
        row[at] = red + (image[0, y, b] - red) * weight
        row[at + channel_step] = green + (image[1, y, b] - green) * weight
        row[at + channel_step + channel_step] = blue + (image[2, y, b] - blue) * weight


@jit
def blend(upper, lower, weight, row):
    """Fills the row with what lies between two others."""
    for i in range(len(row)):
        row[i] = upper[i] + (lower[i] - upper[i]) * weight


@jit
def round_to_bfloat16(values, row):
    """The upper halves of float32's bits, rounded to even: fills the row."""
    bits = values.view(np.uint32)
    for i in range(len(row)):
        row[i] = (bits[i] + np.uint32(0x7FFF) + (bits[i] >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)


@jit
def warp_crops(image, sources, targets, crops):
    """Fills crops.

    Args:
        image: (3, H, W) float32.
        sources: (N, 4) int64 x1 y1 x2 y2 in the image, half-open.
        targets: (N, 4) int64, where in its crop each of these lands; an empty one leaves its crop at zero.
        crops: (N, 3, S, S), or (N, 1, S, 3 * S) with a pixel's channels side by side; float32, or uint16 for the bits
            of bfloat16.
    """
    planes, size = crops.shape[1], crops.shape[2]
    # Within a row: how many channels lie side by side, and how far a pixel of the next channel is.
    channels, channel_step = (1, size) if planes == 3 else (3, 1)
    steps = np.uint64(channel_step), np.uint64(channels)
    # Unsigned, so that no index has to be looked at for counting from the end.
    left, right = np.empty(size, np.uint32), np.empty(size, np.uint32)
    top, bottom = np.empty(size, np.uint32), np.empty(size, np.uint32)
    across, down = np.empty(size, np.float32), np.empty(size, np.float32)
    # The last two rows that were resampled: row y of the image in line y % 2.
    lines, held = np.empty((2, 3 * size), np.float32), np.empty(2, np.int64)
    blended = np.empty(channels * size, np.float32)
    for n in range(len(crops)):
        x1, y1, x2, y2 = sources[n]
        first, above, last, below = targets[n]
        if first >= last or above >= below:
            crops[n] = 0
            continue
        place_samples(x1, x2 - x1, last - first, left, right, across)
        place_samples(y1, y2 - y1, below - above, top, bottom, down)
        crops[n, :, :above] = 0
        crops[n, :, below:] = 0
        held[:] = -1
        values = channels * (last - first)
        for j in range(below - above):
            for y in (top[j], bottom[j]):
                if held[y % 2] != y:
                    held[y % 2] = y
                    resample(image, y, left, right, across, last - first, lines[y % 2], *steps)
            for p in range(planes):
                upper = lines[top[j] % 2, p * size : p * size + values]
                lower = lines[bottom[j] % 2, p * size : p * size + values]
                row = crops[n, p, above + j]
                row[: channels * first] = 0
                row[channels * last :] = 0
                seen = row[channels * first : channels * last]
                if crops.itemsize == 4:
                    blend(upper, lower, down[j], seen)
                else:
                    blend(upper, lower, down[j], blended[:values])
                    round_to_bfloat16(blended, seen)
