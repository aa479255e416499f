"""Colour spaces, and what the steps say of images that they cannot take."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.errors import ConfigError, ImageTypeError
from detkit.proposals.selective_search.colour_spaces import COLOUR_SPACES, to_colour_space
from detkit.proposals.selective_search.segmentation import segment
from tests.proposals.selective_search.generated import noise

RED = np.full((2, 3, 3), (255, 0, 0), np.uint8)


@pytest.mark.parametrize("name", COLOUR_SPACES)
def test_every_space_is_8_bit_of_one_or_three_channels(name: str) -> None:
    converted = to_colour_space(noise(5, 7), name)
    assert converted.dtype == np.uint8 and converted.flags.c_contiguous
    assert converted.shape == (5, 7, 1 if name in ("gray", "h", "h_full", "blue") else 3)


@pytest.mark.parametrize(
    ("name", "pixel"),
    [
        ("hsv", [0, 255, 255]),
        ("h", [0]),
        ("gray", [76]),
        ("blue", [0]),
        ("rgi", [255, 0, 76]),
        ("normalized_rgi", [255, 0, 76]),
        ("lab", [136, 208, 195]),
    ],
)
def test_red_in_each_space(name: str, pixel: list[int]) -> None:
    assert (to_colour_space(RED, name) == pixel).all()


def test_hue_goes_to_179_or_to_255() -> None:
    violet = np.full((1, 1, 3), (255, 0, 6), np.uint8)
    assert to_colour_space(violet, "h").item() == 179
    assert to_colour_space(violet, "h_full").item() == 255


def test_normalized_colours_are_shares_of_the_sum() -> None:
    pixels = np.array([[[0, 0, 0], [50, 50, 50], [10, 30, 60]]], np.uint8)
    assert to_colour_space(pixels, "normalized_rgi")[0, :, :2].tolist() == [[0, 0], [85, 85], [26, 77]]


def test_an_unknown_space_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown colour space 'xyz'.*hsv, lab"):
        to_colour_space(RED, "xyz")


@pytest.mark.parametrize(
    "image", [RED[..., 0], RED.astype(np.float32), RED[:0], None], ids=["flat", "float", "empty", "none"]
)
def test_each_step_says_what_image_it_wants(image) -> None:
    for step in (lambda: to_colour_space(image, "hsv"), lambda: segment(image, [150.0])):
        with pytest.raises(ImageTypeError, match=r"a uint8 array .* is needed"):
            step()
