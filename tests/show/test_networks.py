"""Filters, feature maps and receptive fields."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

from detkit import show
from detkit.errors import ConfigError
from detkit.features.architectures import classification_network, convolution_layers
from detkit.features.receptive_field import ReceptiveField, receptive_field
from detkit.show.canvas import COLOURS

from .conftest import photo, rectangles


def test_weights_of_one_channel_go_from_blue_over_white_to_red_on_one_scale() -> None:
    weight = torch.tensor([[[[0.0, 2.0], [-1.0, 0.5]]], [[[-4.0, 0.0], [0.0, 0.0]]]], requires_grad=True)
    figure = show.filters(weight, ["first", "second"])
    first, second, bar = figure.axes
    assert [ax.get_title() for ax in (first, second)] == ["first", "second"]
    assert bar.get_ylabel() == "weight"
    for ax, values in zip((first, second), weight.detach(), strict=True):
        (image,) = ax.images
        assert np.array_equal(image.get_array(), values[0].numpy()) and image.get_clim() == (-4, 4)
        colours = image.to_rgba(image.get_array())
        red, green, blue = colours[..., 0], colours[..., 1], colours[..., 2]
        assert (red > blue)[values[0].numpy() > 0].all() and (red < blue)[values[0].numpy() < 0].all()
        assert (np.stack([red, green, blue])[:, values[0].numpy() == 0] > 0.95).all()


def test_weights_of_three_channels_are_colours_around_grey() -> None:
    weight = torch.zeros(2, 3, 2, 2)
    weight[0, 0, 0, 1], weight[1, 2, 1, 0] = 3.0, -1.5
    figure = show.filters(weight)
    assert len(figure.axes) == 2  # no colour bar: there are three
    first, second = (ax.images[0].get_array() for ax in figure.axes)
    assert first[0, 1].tolist() == [1.0, 0.5, 0.5] and second[1, 0].tolist() == [0.5, 0.5, 0.25]
    assert first[0, 0].tolist() == first[1, 1].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("count, shape", [(6, (1, 6)), (8, (1, 8)), (10, (2, 5)), (16, (2, 8)), (17, (3, 6))])
def test_rows_are_of_about_the_same_length(count: int, shape: tuple[int, int]) -> None:
    figure = show.filters(torch.randn(count, 3, 5, 5))
    assert len(figure.axes) == count
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


def test_filters_of_other_channels_are_refused() -> None:
    for shape in [(6, 2, 5, 5), (0, 3, 5, 5), (6, 3)]:
        with pytest.raises(ConfigError, match="filters of 1 or 3 channels"):
            show.filters(torch.zeros(shape))
    with pytest.raises(ConfigError, match="1 titles for 2 pictures"):
        show.filters(torch.zeros(2, 3, 5, 5), ["a"])


def test_maps_lie_over_the_pixels_of_their_image_on_one_scale() -> None:
    maps = torch.rand(3, 6, 10) - 0.5
    figure = show.feature_maps(maps, photo())
    first, *others, bar = figure.axes
    assert np.array_equal(first.images[0].get_array(), photo()) and first.get_title() == "image"
    for i, (ax, values) in enumerate(zip(others, maps, strict=True)):
        (image,) = ax.images
        assert np.array_equal(image.get_array(), values.numpy())
        assert image.get_clim() == (float(maps.min()), float(maps.max()))
        assert list(image.get_extent()) == list(first.images[0].get_extent()) == [0, 100, 60, 0]
        assert ax.get_title() == f"map {i + 1}"
    assert bar.get_ylabel() == "value"


def test_maps_without_an_image_have_their_own_names_and_cells() -> None:
    figure = show.feature_maps(torch.rand(2, 6, 10), titles=["vertical", "horizontal"])
    assert [ax.get_title() for ax in figure.axes[:2]] == ["vertical", "horizontal"]
    assert list(figure.axes[0].images[0].get_extent()) == [0, 10, 6, 0]
    with pytest.raises(ConfigError, match=r"\(C, H, W\), not \(1, 2, 6, 10\)"):
        show.feature_maps(torch.rand(1, 2, 6, 10))
    with pytest.raises(ConfigError, match="1 titles for 2 maps"):
        show.feature_maps(torch.rand(2, 6, 10), titles=["a"])


LENET = classification_network("lenet5", 10)


@settings(deadline=None, max_examples=10)
@given(st.floats(0, 100), st.floats(0, 60))
def test_each_layer_is_drawn_with_the_cell_nearest_to_the_point(x: float, y: float) -> None:
    fields = receptive_field(convolution_layers("lenet5", LENET))
    ax = show.receptive_field(photo(), fields, (x, y), ax=Figure().subplots())
    expected = {"c1": (5, 1), "s2": (6, 2), "c3": (14, 2), "s4": (16, 4)}  # size, stride; ReLU adds nothing
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"{name}: {size} x {size} pixels, stride {stride}" for name, (size, stride) in expected.items()
    ]
    for colour, (size, stride) in zip(COLOURS, expected.values(), strict=False):
        (box,) = rectangles(ax, colour)
        assert box[2] - box[0] == box[3] - box[1] == size
        for centre, wanted in (((box[0] + box[2]) / 2, x), ((box[1] + box[3]) / 2, y)):
            assert abs(centre - wanted) <= stride / 2 + 1e-6 and (centre - stride / 2) % stride == 0
        low, high = ax.get_xlim()
        assert low <= box[0] and box[2] <= high and ax.get_ylim()[1] <= box[1] and box[3] <= ax.get_ylim()[0]


def test_a_gradient_reaches_the_pixels_that_are_outlined_and_no_others(ax: Axes) -> None:
    body = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, padding=1))
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    body(image)[0, :, 8, 5].sum().backward()
    seen = image.grad[0].abs().sum(0) > 0
    rows, columns = (torch.nonzero(seen.any(side)).flatten() for side in (1, 0))
    (field,) = receptive_field({"all": body})
    # The cell in row 8, column 5 at stride 2 lies over the pixels around x 11, y 17.
    show.receptive_field(np.zeros((32, 32, 3), np.uint8), [field], (11, 17), ax)
    assert rectangles(ax, COLOURS[0]) == [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]
    assert to_rgb(ax.patches[0].get_edgecolor()) == (1, 1, 1)  # a white rim below, seen on any picture
    assert ax.get_title() == "What one cell of each layer sees: that nearest to x 11, y 17"


def test_a_point_outside_and_no_layer_are_refused(ax: Axes) -> None:
    with pytest.raises(ConfigError, match=r"the point \(101, 5\) is not on an image of 100 x 60 pixels"):
        show.receptive_field(photo(), [ReceptiveField("a", 1, 3, 0.5)], (101, 5), ax)
    with pytest.raises(ConfigError, match="one layer or more"):
        show.receptive_field(photo(), [], ax=ax)
