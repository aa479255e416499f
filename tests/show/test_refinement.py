"""Crops, margins and box regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkit import show
from detkit.errors import ConfigError
from detkit.features.preprocessing import IMAGENET_MEAN
from detkit.features.warping import crop_geometry, warp
from detkit.show.canvas import BLUE, GREEN, ORANGE
from detkit.show.refinement import WAYS

from .conftest import photo, rectangles


def test_each_way_to_crop_shows_what_the_network_is_given() -> None:
    box = torch.tensor([70.0, 10, 98, 58])  # near the border
    first, *others = show.warped_crops(photo(), box, size=64, ways=WAYS).axes
    assert rectangles(first, ORANGE) == [box.tolist()]
    sources = [crop_geometry(box[None], (60, 100), 64, context, mode).source[0].tolist() for mode, context in WAYS]
    assert rectangles(first, BLUE) == sources
    mean = torch.tensor(IMAGENET_MEAN).mul(255).view(3, 1, 1)
    pixels = torch.from_numpy(photo()).permute(2, 0, 1)
    for ax, (mode, context) in zip(others, WAYS, strict=True):
        crop = (warp(pixels - mean, box[None], 64, context, mode)[0] + mean).permute(1, 2, 0)
        assert np.abs(np.asarray(ax.images[0].get_array(), float) - crop.numpy()).max() <= 0.51
        assert ax.get_title() == f"{mode}\ncontext {context}"
        inner = [[16, 16, 48, 48]] if (mode, context) == ("warp", 16) else []
        assert rectangles(ax, ORANGE) == inner


def test_crops_are_drawn_in_rows_of_eight() -> None:
    crops = torch.rand(11, 3, 5, 5) * 255
    axes = show.crops(crops, [f"no {i}" for i in range(11)]).axes
    assert [ax.get_title() for ax in axes] == [f"no {i}" for i in range(11)]
    assert len({round(ax.get_subplotspec().get_position(ax.figure).y0, 3) for ax in axes}) == 2
    for ax, crop in zip(axes, crops, strict=True):
        assert np.array_equal(ax.images[0].get_array(), crop.round().byte().permute(1, 2, 0).numpy())
    with pytest.raises(ConfigError, match="11 crops and 2 titles"):
        show.crops(crops, ["a", "b"])
    with pytest.raises(ConfigError, match="0 crops"):
        show.crops(crops[:0])


@settings(deadline=None, max_examples=8)
@given(st.lists(st.floats(-5, 5), max_size=30), st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_every_margin_is_counted(positives: list[float], negatives: list[float]) -> None:
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (positives, negatives)]
    ax = show.margins(*tensors, ax=Figure().subplots())
    counts = {bars[0].get_label(): sum(bar.get_height() for bar in bars) for bars in ax.containers}
    assert counts == {
        f"positives: {len(positives)}": len(positives),
        f"negatives: {len(negatives)}": len(negatives),
    }
    hard = sum(value > -1 for value in negatives)
    assert ax.get_title().startswith(f"{hard} negatives are hard")
    assert sorted(line.get_xdata()[0] for line in ax.lines) == [-1, 0, 1]


def test_margins_of_a_class_that_was_not_trained_are_refused(ax: Axes) -> None:
    with pytest.raises(ConfigError, match="only -inf"):
        show.margins(torch.tensor([1.0]), torch.tensor([-torch.inf]), ax)
    with pytest.raises(ConfigError, match="one finite number or more"):
        show.margins(torch.zeros(0), torch.zeros(0), ax)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 5), st.integers(0, 999))
def test_arrows_lead_from_each_corner_to_where_it_went(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(count, 4, generator=generator, dtype=torch.float64) * 50 for _ in range(2))
    ax = show.regression(photo(), before, after, truth=torch.tensor([[1.0, 2, 30, 40]]), ax=Figure().subplots())
    arrows = [(list(arrow.xyann), list(arrow.xy)) for arrow in ax.texts]
    expected = []
    for start, end in zip(before.tolist(), after.tolist(), strict=True):
        expected += [(start[:2], end[:2]), (start[2:], end[2:])]
    assert arrows == expected
    for drawn, wanted in ((rectangles(ax, ORANGE), before), (rectangles(ax, GREEN), after)):
        assert np.allclose(np.array(drawn).reshape(-1, 4), wanted)
    assert rectangles(ax, "white") == [[1, 2, 30, 40]]


def test_each_proposal_needs_its_box(ax: Axes) -> None:
    with pytest.raises(ConfigError, match="1 refined boxes of 2 proposals"):
        show.regression(photo(), torch.zeros(2, 4), torch.zeros(1, 4), ax=ax)
