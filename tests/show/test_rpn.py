"""Anchors, and the objectness of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkit import show
from detkit.boxes import AnchorGenerator
from detkit.errors import ConfigError

from .conftest import photo, rectangles, rounded


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 6), st.lists(st.sampled_from([16.0, 32.0, 64.0]), min_size=1, unique=True))
def test_the_anchors_of_one_cell_and_the_centres_of_all(height: int, width: int, sizes: list[float]) -> None:
    (anchors,) = AnchorGenerator([sizes], [0.5, 1.0, 2.0], strides=[16])([(height, width)], (16 * height, 16 * width))
    cell = (height - 1, width // 2)
    ax = show.anchors(photo(), anchors, (height, width), cell, ax=Figure().subplots())
    count = 3 * len(sizes)
    own = anchors.reshape(height, width, count, 4)[cell]
    assert rounded(rectangles(ax)) == rounded(own.tolist())
    centres = [[16.0 * x, 16.0 * y] for y in range(height) for x in range(width)]
    assert ax.collections[0].get_offsets().tolist() == centres
    assert ax.get_title() == f"{count} anchors of one cell; {height} x {width} x {count} = {len(anchors):,} in all"
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < own[:, 0].min() and right > own[:, 2].max() and top < own[:, 1].min() and bottom > own[:, 3].max()
    colours = [patch.get_edgecolor() for patch in ax.patches]
    assert len(set(colours)) == len(sizes)  # one a size, for its three shapes
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    areas = [f"area {size:.0f} x {size:.0f}" for size in sizes]
    boxes = [box for box in own.tolist() if abs((box[2] - box[0]) * (box[3] - box[1]) / max(sizes) ** 2 - 1) < 0.1]
    ratios = [f"height / width {(box[3] - box[1]) / (box[2] - box[0]):.2g}" for box in boxes]
    assert texts == [f"centres, {height} x {width}", *areas, *ratios]
    lines = [line.get_linestyle() for line in ax.get_lines()]
    own_lines = [p.get_linestyle() for p in ax.patches if p.get_edgecolor() == ax.patches[0].get_edgecolor()]
    assert len({*lines}) == 3 and lines == own_lines


def test_anchors_of_another_map_are_refused(ax: Axes) -> None:
    (anchors,) = AnchorGenerator([[16.0]], [1.0], strides=[16])([(2, 3)], (32, 48))
    with pytest.raises(ConfigError, match="6 anchors do not fit a map of 2 x 2 cells"):
        show.anchors(photo(), anchors, (2, 2), ax=ax)
    with pytest.raises(ConfigError, match=r"cell \(2, 0\) is not on a map of 2 x 3"):
        show.anchors(photo(), anchors, (2, 3), (2, 0), ax=ax)


def test_the_scores_of_each_anchor_lie_over_the_image() -> None:
    scores = torch.rand(2, 3, 5)
    figure = show.objectness(photo(), scores, ["small", "large"])
    first, *others = figure.axes[:3]
    assert len(first.images) == 1
    for ax, name, score in zip(others, ("small", "large"), scores, strict=True):
        image, drawn = ax.images
        assert list(image.get_extent()) == list(drawn.get_extent()) == [0, 100, 60, 0]
        assert np.array_equal(drawn.get_array(), score.numpy()) and drawn.get_clim() == (0, 1)
        assert ax.get_title() == f"{name}\nbest {score.max():.2f}"
    with pytest.raises(ConfigError, match="1 names for 2 anchors"):
        show.objectness(photo(), scores, ["small"])
