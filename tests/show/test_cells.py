"""Convolution and max pooling, cell by cell."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle

from detkit import show
from detkit.errors import ConfigError
from detkit.show.canvas import ORANGE

from .conftest import rectangles, rounded, texts


def written(ax: Axes, values: torch.Tensor) -> bool:
    """Whether each value stands in the middle of its cell, row by row, and nothing else is written."""
    cells = [(x + 0.5, y + 0.5) for y in range(values.shape[0]) for x in range(values.shape[1])]
    positions = [text.get_position() for text in ax.texts]
    return positions == cells and texts(ax) == [f"{value:.3g}" for value in values.flatten().tolist()]


def test_a_convolution_is_drawn_with_its_numbers() -> None:
    values = torch.arange(20.0).reshape(4, 5)
    kernel = torch.tensor([[1.0, 0], [0, -2]])
    figure = show.convolution(values, kernel, cell=(1, 2))
    first, second, third = figure.axes
    output = F.conv2d(values[None, None], kernel[None, None])[0, 0]
    assert written(first, values) and written(second, kernel) and written(third, output)
    assert [ax.get_title() for ax in figure.axes] == ["input, 4 x 5", "kernel, 2 x 2", "output, 3 x 4"]
    assert rectangles(first, ORANGE) == [[2, 1, 4, 3]] and rectangles(third, ORANGE) == [[2, 1, 3, 2]]
    assert rectangles(second) == []
    # Row 1, column 2: the window has 7, 8 and 12, 13.
    assert figure.get_supxlabel() == "7·1 + 8·0 + 12·0 + 13·(-2) = -19"


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_the_window_that_is_outlined_gives_the_cell_that_is_outlined(
    height: int, width: int, side: int, stride: int, seed: int
) -> None:
    side = min(side, height, width)
    generator = torch.Generator().manual_seed(seed)
    values, kernel = torch.randn(height, width, generator=generator), torch.randn(side, side, generator=generator)
    rows, columns = (height - side) // stride + 1, (width - side) // stride + 1
    cell = (seed % rows, seed % columns)
    figure = show.convolution(values, kernel, cell, stride)
    ((x1, y1, x2, y2),) = ([int(value) for value in row] for row in rectangles(figure.axes[0], ORANGE))
    assert rectangles(figure.axes[2], ORANGE) == [[cell[1], cell[0], cell[1] + 1, cell[0] + 1]]
    computed = float((values[y1:y2, x1:x2] * kernel).sum())
    place = cell[0] * columns + cell[1]
    assert float(texts(figure.axes[2])[place]) == pytest.approx(computed, rel=0.006, abs=1e-5)  # three digits
    pyplot.close(figure)


def test_max_pooling_circles_the_largest_of_each_window() -> None:
    values = torch.randperm(35, generator=torch.Generator().manual_seed(0)).reshape(5, 7).float()
    figure = show.max_pooling(values, 2)
    left, right = figure.axes
    pooled = F.max_pool2d(values[None, None], 2)[0, 0]
    assert written(left, values) and written(right, pooled)
    windows = [[2 * x, 2 * y, 2 * x + 2, 2 * y + 2] for y in range(2) for x in range(3)]
    inset = [[x1 + 0.06, y1 + 0.06, x2 - 0.06, y2 - 0.06] for x1, y1, x2, y2 in windows]
    assert rounded(rectangles(left)) == rounded(inset)  # the last row and column are in no window
    circles = [patch for patch in left.patches if isinstance(patch, Circle)]
    assert [float(values[int(c.center[1]), int(c.center[0])]) for c in circles] == pooled.flatten().tolist()
    colours = [to_rgb(patch.get_edgecolor()) for patch in right.patches]
    assert [to_rgb(circle.get_edgecolor()) for circle in circles] == colours
    assert len(set(colours)) == 6


def test_overlapping_windows_are_those_of_the_stride() -> None:
    figure = show.max_pooling(torch.rand(5, 5), 3, stride=2)
    lefts = [round(row[0] - 0.06) for row in rectangles(figure.axes[0])]
    assert lefts == [0, 2, 0, 2] and len(texts(figure.axes[1])) == 4


def test_numbers_stay_black_and_above_light_greys() -> None:
    for figure in (show.convolution(torch.rand(5, 5), torch.rand(3, 3)), show.max_pooling(torch.rand(4, 4))):
        for ax in figure.axes:
            (image,) = ax.images
            assert image.to_rgba(image.get_array())[..., :3].min() > 0.5
            assert {text.get_color() for text in ax.texts} == {"black"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 12 cells a side"):
        show.convolution(torch.zeros(13, 4), torch.zeros(3, 3))
    with pytest.raises(ConfigError, match=r"one channel \(H, W\)"):
        show.max_pooling(torch.zeros(1, 4, 4))
    with pytest.raises(ConfigError, match=r"a kernel \(3, 3\) does not fit into values \(2, 5\)"):
        show.convolution(torch.zeros(2, 5), torch.zeros(3, 3))
    with pytest.raises(ConfigError, match=r"cell \(0, 3\) is not on an output of 3 x 3, counted from 0"):
        show.convolution(torch.zeros(5, 5), torch.zeros(3, 3), (0, 3))
    with pytest.raises(ConfigError, match="a window of 5 x 5 does not fit"):
        show.max_pooling(torch.zeros(4, 4), 5)
