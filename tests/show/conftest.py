"""Pictures are read back from their Axes: where boxes, points and texts are, and in which colours."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture
def ax() -> Axes:
    """Axes of a figure that pyplot does not know."""
    from matplotlib.figure import Figure

    return Figure().subplots()


def photo(height: int = 60, width: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rectangles(ax: Axes, colour: str | None = None) -> list[list[float]]:
    """x1 y1 x2 y2 of the rectangles whose outline has that colour, in the order they were drawn."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    if colour is not None:
        found = [patch for patch in found if to_rgb(patch.get_edgecolor()) == to_rgb(colour)]
    return [[p.get_x(), p.get_y(), p.get_x() + p.get_width(), p.get_y() + p.get_height()] for p in found]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_text()]


def rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in rows]
