"""The regions of selective search and their merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from detkit import show
from detkit.errors import ConfigError
from detkit.proposals.selective_search import grouping, regions
from detkit.proposals.selective_search.segmentation import Segmentations

from .conftest import rectangles


def tiles() -> tuple[np.ndarray, grouping.Hierarchy]:
    """Twelve square regions of 10 pixels, and their grouping."""
    labels = np.kron(np.arange(12, dtype=np.int32).reshape(3, 4), np.ones((10, 10), np.int32))
    colours = np.random.default_rng(2).integers(0, 256, (12, 3), dtype=np.uint8)
    return labels, grouping.group(regions.describe(colours[labels], Segmentations(labels, np.arange(12)[None]))[0])


def colours_of(ax: Axes, labels: np.ndarray) -> dict[int, tuple[int, ...]]:
    """The colour in the middle of each of the tiles."""
    picture = np.asarray(ax.images[0].get_array())
    middle = {label: np.argwhere(labels == label).mean(0).round().astype(int) for label in range(12)}
    return {label: tuple(picture[y, x].tolist()) for label, (y, x) in middle.items()}


def test_each_region_has_one_colour_with_white_between(ax: Axes) -> None:
    labels, _ = tiles()
    show.segmentation(labels, ax)
    picture = np.asarray(ax.images[0].get_array())
    colours = colours_of(ax, labels)
    assert len(set(colours.values())) == 12
    for label, colour in colours.items():
        own = picture[labels == label]
        assert {tuple(pixel) for pixel in own.tolist()} <= {colour, (255, 255, 255)}
        assert (own == colour).all(1).sum() >= 81  # white is the first row and column, at most
    assert list(ax.images[0].get_extent()) == [0, 40, 30, 0] and ax.get_title() == "12 regions"


def test_a_merge_takes_the_colour_of_its_largest_part_and_has_its_box(ax: Axes) -> None:
    labels, hierarchy = tiles()
    before = colours_of(show.grouping(labels, hierarchy, 0, Figure().subplots()), labels)
    for merges in range(1, 12):
        ax.clear()
        show.grouping(labels, hierarchy, merges, ax)
        now = colours_of(ax, labels)
        region = hierarchy.regions_after(merges)
        assert len(set(now.values())) == 12 - merges == len(np.unique(region))
        for a in range(12):
            for b in range(12):
                assert (now[a] == now[b]) == (region[a] == region[b])
        made = hierarchy.initial + merges - 1
        assert set(now.values()) < set(before.values())  # no colour is new
        assert rectangles(ax, "white") == [hierarchy.boxes[made].tolist()]
        left = f"{12 - merges} region{'s' if merges < 11 else ''}"
        assert ax.get_title().startswith(f"{left} after {merges} merge")
        assert ax.get_title().endswith(f"similarity {hierarchy.similarity[merges - 1]:.2f}")
        before = now


def test_the_animation_begins_with_all_regions_and_ends_with_one(tmp_path: Path) -> None:
    labels, hierarchy = tiles()
    animation = show.grouping_animation(labels, hierarchy, frames=5)
    left = list(animation.new_frame_seq())
    assert left[0] == 12 and left[-1] == 1 and len(left) == 5 and left == sorted(left, reverse=True)
    animation.save(tmp_path / "grouping.gif", writer="pillow", dpi=30)
    with Image.open(tmp_path / "grouping.gif") as picture:
        assert picture.n_frames == 5
    assert pyplot.get_fignums() == []


def test_what_does_not_fit_is_refused() -> None:
    labels, hierarchy = tiles()
    with pytest.raises(ConfigError, match="began with 12 regions, the labels go up to 13"):
        show.grouping(labels + 2, hierarchy, 1)
    with pytest.raises(ConfigError, match="has 11 merges"):
        show.grouping(labels, hierarchy, 12)
    with pytest.raises(ConfigError, match="2 frames or more, not 1"):
        show.grouping_animation(labels, hierarchy, frames=1)
    assert pyplot.get_fignums() == []
