"""Texture: derivatives in eight directions, each in ten bins (Uijlings et al. 2013, section 3.2).

Four derivatives are computed, along x, y and the two diagonals; the positive and the negative part of each are two of
the eight directions. As in OpenCV (ximgproc, selectivesearchsegmentation.cpp) the diagonal ones are Scharr derivatives
along x and y of the image rotated by 45 degrees on black, rotated back. The border between image and black is often the
strongest edge and then sets the scale of the bins.
"""

from __future__ import annotations

import math

import numpy as np

from detkit.errors import DataError
from detkit.system import jit

AXES = 4
BINS = 10
#: The largest coordinate of cv2.remap, which has 16 bits.
LONGEST = 32766


def texture_bins(image: np.ndarray) -> np.ndarray:
    """The bin of each pixel for each axis: 0-9 where the derivative is negative or zero, 10-19 where it is positive.

    As in OpenCV, the negative and the positive part are each scaled to 0-255 by their own extreme and divided into ten
    bins. Zero is in the last bin of the negative part, and counts as the first of the positive one.

    Returns:
        uint8 (4, H, W * C) of an image uint8 (H, W, C); the axes are x, y and the two diagonals.

    Raises:
        DataError: an image too long for OpenCV to rotate.
    """
    import cv2

    height, width, channels = image.shape
    out = np.empty((AXES, height, width * channels), np.uint8)
    rotated, back = rotate(image)
    derivative = rotated_derivative = None
    for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
        derivative = cv2.Scharr(image, cv2.CV_32F, dx, dy, dst=derivative)
        _write_bins(derivative.reshape(image.shape), out[axis])
        rotated_derivative = cv2.Scharr(rotated, cv2.CV_32F, dx, dy, dst=rotated_derivative)
        derivative = cv2.remap(rotated_derivative, *back, cv2.INTER_LINEAR, dst=derivative)
        _write_bins(derivative.reshape(image.shape), out[2 + axis])
    return out


def rotate(image: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The uint8 image (H, W, C) rotated by 45 degrees on black, and the maps with which `cv2.remap` rotates it back.

    The maps are int16 (H, W, 2) x y, and the fraction between four pixels. Equal to the last bit to OpenCV's warpAffine
    and a crop of the middle, which computes twice the area.
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
            f"{int(LONGEST * math.sqrt(2)) - 4} together; divide the image into parts"
        )
    forth = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    forth[:, 2] += [size[0] / 2 - centre[0], size[1] / 2 - centre[1]]
    # The inverse of the rotation back: where in the rotated image a pixel comes from.
    back = cv2.invertAffineTransform(cv2.getRotationMatrix2D((size[0] // 2, size[1] // 2), -45.0, 1.0))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return cv2.warpAffine(image, forth, size), _sampling_maps(back, left, top, width, height)


@jit
def _sampling_maps(matrix, left, top, width, height):
    """The maps of `rotate`: positions under an affine map (2, 3), in units of 1/32 pixel as in OpenCV."""
    whole, parts = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)
    # OpenCV adds a column's and a row's term, each rounded to 1/1024.
    column_x, column_y = np.empty(width, np.int64), np.empty(width, np.int64)
    for x in range(width):
        column_x[x] = np.int64(np.rint(matrix[0, 0] * (left + x) * 1024))
        column_y[x] = np.int64(np.rint(matrix[1, 0] * (left + x) * 1024))
    for y in range(height):
        row_x = np.int64(np.rint((matrix[0, 1] * (top + y) + matrix[0, 2]) * 1024)) + 16
        row_y = np.int64(np.rint((matrix[1, 1] * (top + y) + matrix[1, 2]) * 1024)) + 16
        for x in range(width):
            fine_x, fine_y = (row_x + column_x[x]) >> 5, (row_y + column_y[x]) >> 5
            whole[y, x, 0], whole[y, x, 1] = fine_x >> 5, fine_y >> 5
            parts[y, x] = (fine_y & 31) * 32 + (fine_x & 31)
    return whole, parts


def _write_bins(derivative: np.ndarray, out: np.ndarray) -> None:
    """Writes the bins of a derivative, float32 (H, W, C), to `out`, uint8 (H, W * C); see `texture_bins`."""
    height, width = derivative.shape[:2]
    flat = derivative.reshape(height, -1)
    low, high = (extreme.reshape(width, -1) for extreme in (flat.min(axis=0), flat.max(axis=0)))
    scales = []
    for extreme in (-low.min(axis=0).astype(np.float64), high.max(axis=0).astype(np.float64)):
        scale = np.divide(255.0, extreme, out=np.zeros_like(extreme), where=extreme > 0).astype(np.float32)
        scales.append(np.tile(scale.astype(np.float64), width))  # for each column
    _cut(flat, *scales, out)


@jit
def _cut(derivative, falling, rising, out):
    """See `_write_bins`; falling and rising (W * C,) float64 are the scales of the negative and the positive part."""
    height, count = derivative.shape
    for y in range(height):
        for i in range(count):
            value = np.float64(derivative[y, i])
            # In double precision, then rounded: the result of a fused multiply-add in single precision.
            scaled = np.float32(value * rising[i] if value > 0 else value * falling[i] + 255.0)
            bin_number = np.int32(np.rint(scaled) * np.float32(BINS / 256))
            out[y, i] = bin_number + (BINS if value > 0 else 0)
