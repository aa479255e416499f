"""Derivatives and their bins, against OpenCV's own way step by step."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from detkit.errors import DataError
from detkit.proposals.selective_search.texture import rotate, texture_bins
from tests.proposals.selective_search.generated import blobs, noise


def opencv_derivatives(plane: np.ndarray) -> list[np.ndarray]:
    """Along x, y and the diagonals: turned by warpAffine, derived, turned back and cut out."""
    height, width = plane.shape
    centre = (width / 2, height / 2)
    corners = cv2.boxPoints((centre, (width, height), 45.0))
    size = tuple(math.ceil(b) - math.floor(a) + 1 for a, b in zip(corners.min(0), corners.max(0), strict=True))
    matrix = cv2.getRotationMatrix2D(centre, 45.0, 1.0)
    matrix[:, 2] += [size[0] / 2 - centre[0], size[1] / 2 - centre[1]]
    turned = cv2.warpAffine(plane, matrix, size)
    back = cv2.getRotationMatrix2D((size[0] // 2, size[1] // 2), -45.0, 1.0)
    x, y = (size[0] - width) // 2, (size[1] - height) // 2
    out = [cv2.Scharr(plane, cv2.CV_32F, 1, 0), cv2.Scharr(plane, cv2.CV_32F, 0, 1)]
    for dx, dy in ((1, 0), (0, 1)):
        whole = cv2.warpAffine(cv2.Scharr(turned, cv2.CV_32F, dx, dy), back, size)
        out.append(whole[y : y + height, x : x + width])
    return out


def opencv_bins(half: np.ndarray) -> np.ndarray:
    """Ten bins of what cv2.normalize makes 0-255 of it."""
    low, high = float(half.min()), float(half.max())
    scale = 255 / (high - low)
    scaled = np.rint((half.astype(np.float64) * np.float32(scale) - np.float32(low * scale)).astype(np.float32))
    return (scaled / np.float32(25.6)).astype(np.uint8)


@pytest.mark.parametrize("size", [(21, 34), (40, 17), (33, 33)], ids=str)
def test_bins_are_those_of_opencvs_way(size: tuple[int, int]) -> None:
    image = blobs(*size, seed=5)
    bins = texture_bins(image).reshape(4, *image.shape)
    for c in range(3):
        for axis, derivative in enumerate(opencv_derivatives(np.ascontiguousarray(image[..., c]))):
            falling, rising = np.minimum(derivative, 0), np.maximum(derivative, 0)
            expected = np.where(derivative > 0, 10 + opencv_bins(rising), opencv_bins(falling))
            assert np.array_equal(bins[axis, ..., c], expected)


def test_turning_back_samples_exactly_as_warp_affine() -> None:
    image = noise(29, 46)
    turned, maps = rotate(image)
    back = cv2.getRotationMatrix2D((turned.shape[1] // 2, turned.shape[0] // 2), -45.0, 1.0)
    steep = cv2.Scharr(turned, cv2.CV_32F, 1, 0)
    whole = cv2.warpAffine(steep, back, turned.shape[1::-1])
    x, y = (turned.shape[1] - 46) // 2, (turned.shape[0] - 29) // 2
    assert np.array_equal(cv2.remap(steep, *maps, cv2.INTER_LINEAR), whole[y : y + 29, x : x + 46])


def test_a_flat_image_is_in_the_last_falling_bin_along_x_and_y() -> None:
    assert (texture_bins(np.full((5, 6, 1), 40, np.uint8))[:2] == 9).all()


def test_an_edge_falls_along_one_axis_only() -> None:
    image = np.zeros((8, 8, 1), np.uint8)
    image[:, 4:] = 200
    along_x, along_y = texture_bins(image)[:2]
    assert (along_x[:, 3:5] == 19).all() and (along_x[:, :3] == 9).all() and (along_y == 9).all()


def test_an_image_too_long_for_opencv_is_refused_with_its_size() -> None:
    with pytest.raises(DataError, match="47000 x 2 pixels"):
        rotate(np.zeros((2, 47_000, 3), np.uint8))
