"""Mosaics of plain pictures, in which every object has a colour of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data import VOC
from detkit.data.mosaic import LEAST_SHARE, Mosaic
from detkit.data.voc_xml import VOCObject

SIZES = ((40, 30), (30, 40), (64, 64), (21, 50))


def load(number: int) -> dict[str, Any]:
    """An image with one object, whose fields and pixels tell its number."""
    width, height = SIZES[number % len(SIZES)]
    x, y = 3 + number % 5, 4 + number % 7
    box = np.array([[x, y, x + 12, y + 10]], np.float32)
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + 10, x : x + 12] = 50 + number
    return {
        "image": image,
        "boxes": box,
        "labels": np.array([number], np.int64),
        "difficult": np.array([number % 2 == 0]),
        "crowd": np.array([number % 3 == 0]),
        "area": np.array([60.0], np.float32),  # half of its box
        "proposals": box.copy(),
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 2**32 - 1))
def test_every_field_follows(index: int, seed: int) -> None:
    item = Mosaic(1.0)(load, index, 100, seed)
    height, width = item["image"].shape[:2]
    assert (width, height) == SIZES[index % len(SIZES)]
    numbers = item["labels"]
    np.testing.assert_array_equal(item["difficult"], numbers % 2 == 0)
    np.testing.assert_array_equal(item["crowd"], numbers % 3 == 0)
    np.testing.assert_array_equal(item["proposals"], item["boxes"])
    areas = (item["boxes"][:, 2:] - item["boxes"][:, :2]).prod(1)
    np.testing.assert_allclose(item["area"], areas / 2, rtol=1e-3)
    assert (item["boxes"] >= 0).all() and (item["boxes"] <= [width, height, width, height]).all()
    for number, (x1, y1, x2, y2) in zip(numbers, item["boxes"], strict=True):
        middle = item["image"][int((y1 + y2) / 2), int((x1 + x2) / 2)]
        if min(x2 - x1, y2 - y1) >= 4:  # inside of it no pixel is mixed with the ground
            assert np.abs(middle.astype(int) - (50 + number)).max() <= 1


def test_it_is_a_function_of_the_seed_and_not_always_done() -> None:
    mosaic = Mosaic(0.5)
    items = [mosaic(load, 7, 100, seed) for seed in range(60)]
    again = [mosaic(load, 7, 100, seed) for seed in range(60)]
    assert all((a["image"] == b["image"]).all() for a, b in zip(items, again, strict=True))
    whole = sum((item["image"] == load(7)["image"]).all() for item in items)
    assert 15 < whole < 45
    seen = {int(number) for item in items for number in item["labels"]}
    assert len(seen) > 20  # others are drawn from the whole set
    assert 0 < LEAST_SHARE < 1


def test_an_image_of_one_pixel_stays_alone() -> None:
    def thin(number: int) -> dict[str, Any]:
        return {**load(number), "image": np.zeros((1, 40, 3), np.uint8)}

    assert Mosaic(1.0)(thin, 3, 100, 0)["image"].shape == (1, 40, 3)


@pytest.mark.parametrize("count", [1, 5])
def test_a_data_set_of_any_size_makes_them(make_voc: Callable[..., Path], count: int) -> None:
    path = make_voc({f"{i:03}": [VOCObject("cat", (2, 3, 20, 20), False)] for i in range(count)})
    data = VOC(
        str(path), batch_size=1, num_workers=0, transforms=["mosaic", "flip"], train="train", val=None, test=None
    )
    data.setup("fit")
    counts = [len(data.dataset("train")[0, seed]["boxes"]) for seed in range(20)]
    assert max(counts) > 1 and min(counts) == 1
