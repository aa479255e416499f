"""Texture: derivatives in eight directions, each in ten bins (Uijlings et al. 2013, section 3.2).

Four derivatives are taken, along x, y and the two diagonals; of each, the part that rises and the part that falls are
two of the eight directions. As in OpenCV (ximgproc, selectivesearchsegmentation.cpp) those along the diagonals are
Scharr's along x and y of the image turned by 45 degrees on black ground, turned back. Where image and ground meet is
often the strongest edge of all, and sets the scale of the bins.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.compiled import jit
from detkit.errors import DataError

AXES = 4
BINS = 10
#: cv2.remap's coordinates are 16 bits wide.
LONGEST = 32766


def texture_bins(image: np.ndarray) -> np.ndarray:
    """The bin of each pixel for each axis: 0-9 where the image falls or is flat along it, 10-19 where it rises.

    As in OpenCV, each of the two halves is scaled to 0-255 by its own extreme and cut into ten. What is flat is in the
    last bin of what falls, and counts as the first of what rises.

    Args:
        image: uint8 (H, W, C).

    Returns:
        uint8 (4, H, W * C), the channels of a pixel side by side; the axes are x, y and the two diagonals.

    Raises:
        DataError: an image so long that OpenCV cannot turn it.
    """
    import cv2

    height, width, channels = image.shape
    out = np.empty((AXES, height, width * channels), np.uint8)
    turned, back = turn(image)
    derivative = steep = None
    for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
        derivative = cv2.Scharr(image, cv2.CV_32F, dx, dy, dst=derivative)
        _write_bins(derivative.reshape(image.shape), out[axis])
        steep = cv2.Scharr(turned, cv2.CV_32F, dx, dy, dst=steep)
        derivative = cv2.remap(steep, *back, cv2.INTER_LINEAR, dst=derivative)
        _write_bins(derivative.reshape(image.shape), out[2 + axis])
    return out


def turn(image: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The image turned by 45 degrees on black ground, and the maps by which `cv2.remap` turns it back.

    Args:
        image: uint8 (H, W, C).

    Returns:
        the turned image, and where in it each pixel (H, W) lies: int16 (H, W, 2) x y, and the place between four pixels
        as `cv2.remap` wants it. Equal to the last bit to OpenCV's way (warpAffine, then cutting out the middle), which
        computes twice the area.
    """
    import cv2

    height, width = image.shape[:2]
    centre = (width / 2, height / 2)
    corners = cv2.boxPoints((centre, (width, height), 45.0))
    size = tuple(
        math.ceil(high) - math.floor(low) + 1 for low, high in zip(corners.min(0), corners.max(0), strict=True)
    )
    if max(size) > LONGEST:
        raise DataError(
            f"an image of {width} x {height} pixels is too long for selective search: width and height may be "
            f"{int(LONGEST * math.sqrt(2)) - 4} together; cut the image into parts"
        )
    forth = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    forth[:, 2] += [size[0] / 2 - centre[0], size[1] / 2 - centre[1]]
    # The matrix that turns back, and its inverse: where in the turned image a pixel comes from.
    back = cv2.invertAffineTransform(cv2.getRotationMatrix2D((size[0] // 2, size[1] // 2), -45.0, 1.0))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return cv2.warpAffine(image, forth, size), _sampling_maps(back, left, top, width, height)


@jit
def _sampling_maps(matrix, left, top, width, height):
    """Where the pixels of a part of the plane come from under an affine map, to a 32nd of a pixel as in OpenCV."""
    whole, parts = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)
    # OpenCV adds a column's and a row's share, each rounded to a 1024th.
    column_x, column_y = np.empty(width, np.int64), np.empty(width, np.int64)
    for x in range(width):
        column_x[x] = np.int64(np.rint(matrix[0, 0] * (left + x) * 1024))
        column_y[x] = np.int64(np.rint(matrix[1, 0] * (left + x) * 1024))
    for y in range(height):
        row_x = np.int64(np.rint((matrix[0, 1] * (top + y) + matrix[0, 2]) * 1024)) + 16
        row_y = np.int64(np.rint((matrix[1, 1] * (top + y) + matrix[1, 2]) * 1024)) + 16
        for x in range(width):
            place_x, place_y = (row_x + column_x[x]) >> 5, (row_y + column_y[x]) >> 5
            whole[y, x, 0], whole[y, x, 1] = place_x >> 5, place_y >> 5
            parts[y, x] = (place_y & 31) * 32 + (place_x & 31)
    return whole, parts


def _write_bins(derivative: np.ndarray, out: np.ndarray) -> None:
    """Writes the bins of a derivative, float32 (H, W, C), to `out`, uint8 (H, W * C); see `texture_bins`."""
    height, width = derivative.shape[:2]
    flat = derivative.reshape(height, -1)
    low, high = (extreme.reshape(width, -1) for extreme in (flat.min(axis=0), flat.max(axis=0)))
    scales = []
    for extreme in (-low.min(axis=0).astype(np.float64), high.max(axis=0).astype(np.float64)):
        scale = np.divide(255.0, extreme, out=np.zeros_like(extreme), where=extreme > 0).astype(np.float32)
        scales.append(np.tile(scale.astype(np.float64), width))  # for each column: so the loop below is all alike
    _cut(flat, *scales, out)


@jit
def _cut(derivative, falling, rising, out):
    height, count = derivative.shape
    for y in range(height):
        for i in range(count):
            value = np.float64(derivative[y, i])
            # In double precision, then rounded: what a fused multiply-add in single precision gives.
            scaled = np.float32(value * rising[i] if value > 0 else value * falling[i] + 255.0)
            place = np.int32(np.rint(scaled) * np.float32(BINS / 256))
            out[y, i] = place + (BINS if value > 0 else 0)
