"""Sliding windows: where they lie, that they cover the image, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detkit.errors import ConfigError
from detkit.proposals import sliding_windows


def test_windows_of_one_shape_are_a_stride_apart_and_end_at_the_border() -> None:
    windows = sliding_windows((20, 50), scales=[20], ratios=[1.0], stride=12)
    assert windows.dtype == torch.float32
    assert sorted(windows.tolist()) == [[0, 0, 20, 20], [12, 0, 32, 20], [24, 0, 44, 20], [30, 0, 50, 20]]


def test_ratios_are_height_over_width_and_keep_the_area() -> None:
    (window,) = sliding_windows((400, 100), scales=[200], ratios=[4.0], stride=1000)[:1]
    assert window.tolist() == [0, 0, 100, 400]


def test_the_order_alternates_between_shapes_and_jumps_through_the_image() -> None:
    windows = sliding_windows((40, 40), scales=[20, 40], ratios=[1.0], stride=20)
    assert windows.tolist() == [[0, 0, 20, 20], [0, 0, 40, 40], [20, 20, 40, 40], [0, 20, 20, 40], [20, 0, 40, 20]]


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (90, 1200)])
def test_the_first_so_many_cover_scales_ratios_and_positions(size: tuple[int, int]) -> None:
    width = size[1]
    windows = sliding_windows(size, scales=[24, 40, 60], ratios=[0.5, 1, 2], stride=8)
    sides = (windows[:, 2:] - windows[:, :2]).round()
    shapes, which = sides.unique(dim=0, return_inverse=True)
    assert len(shapes) == 9
    total = which.bincount(minlength=9)
    centre = (windows[:, :2] + windows[:, 2:]) / 2
    quarter = (centre[:, 0] * 4 / width).long().clamp(max=3)  # of the width, left to right
    for count in (9, 50, 300, 1000):
        taken = which[:count].bincount(minlength=9)
        open_ones = taken[taken < total]
        assert open_ones.max() - open_ones.min() <= 1
        for shape in range(9):
            mine = quarter[which == shape]
            share = mine.bincount(minlength=4) / len(mine)
            first = mine[: taken[shape]]
            assert ((first.bincount(minlength=4) - share * len(first)).abs() <= 2 + 0.05 * len(first)).all()
    assert torch.equal(windows, sliding_windows(size, scales=[24, 40, 60], ratios=[0.5, 1, 2], stride=8))


def test_windows_larger_than_the_image_are_cut_to_it_and_come_once() -> None:
    assert sliding_windows((7, 9), scales=[64, 128], ratios=[0.5, 1, 2], stride=8).tolist() == [[0, 0, 9, 7]]


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scales=st.lists(st.floats(1, 120), min_size=1, max_size=3),
    ratios=st.lists(st.floats(0.2, 5), min_size=1, max_size=3),
    stride=st.floats(7, 60),
)
def test_windows_lie_in_the_image_and_cover_it_without_repeating(size, scales, ratios, stride) -> None:
    windows = sliding_windows(size, scales, ratios, stride)
    height, width = size
    assert (windows[:, :2] >= 0).all() and (windows[:, 2] <= width).all() and (windows[:, 3] <= height).all()
    assert (windows[:, 2:] > windows[:, :2]).all()
    assert len(windows.unique(dim=0)) == len(windows)
    side = min(min(scale * math.sqrt(r), scale / math.sqrt(r)) for scale in scales for r in ratios)
    if stride <= side:
        for y, x in ((0.5, 0.5), (height - 0.5, width - 0.5), (height / 2, width / 2)):
            assert ((windows[:, 0] <= x) & (x <= windows[:, 2]) & (windows[:, 1] <= y) & (y <= windows[:, 3])).any()


@pytest.mark.parametrize(
    "change",
    [{"size": (0, 5)}, {"scales": []}, {"ratios": []}, {"scales": [0]}, {"ratios": [-1.0]}, {"stride": 0.0}],
    ids=str,
)
def test_what_is_not_positive_or_missing_is_refused(change) -> None:
    arguments = {"size": (5, 5), "scales": [4], "ratios": [1.0], "stride": 2.0, **change}
    with pytest.raises(ConfigError, match="sliding windows need"):
        sliding_windows(**arguments)
