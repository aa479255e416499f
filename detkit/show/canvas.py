"""What the pictures share: colours, Axes, and how images, boxes and texts are drawn on them.

A picture goes on the Axes that it is given. Without any it makes a figure of 7 inches, which is 700 pixels wide by
default, through pyplot, so that a notebook or ``pyplot.show()`` displays it; nothing else of pyplot is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detkit.data.image_io import as_image

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

    from detkit.data.image_io import ImageLike

    Boxes = Tensor | np.ndarray | Sequence[Sequence[float]]

WIDTH = 7.0  # of a figure, in inches
#: Okabe and Ito's colours, which the colour-blind can tell apart.
ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)
INK, MUTED = "#222222", "#777777"


def axes_or_new(ax: Axes | None, height: float = 4.6) -> Axes:
    """The Axes that were given, else those of a new figure of that height in inches."""
    return ax if ax is not None else new_row(1, height).axes[0]


def new_row(count: int, height: float, widths: Sequence[float] | None = None) -> Figure:
    """A new figure with ``count`` Axes side by side."""
    from matplotlib import pyplot

    figure, _ = pyplot.subplots(1, count, figsize=(WIDTH, height), layout="constrained", width_ratios=widths)
    return figure


def draw_image(ax: Axes, image: ImageLike, alpha: float = 1.0) -> tuple[int, int]:
    """Draw an image so that the units of the Axes are its pixels, with boxes as they are; its (height, width)."""
    pixels = as_image(image)
    height, width = pixels.shape[1:]
    ax.imshow(pixels.permute(1, 2, 0).cpu().numpy(), extent=(0, width, height, 0), alpha=alpha)
    label_pixels(ax)
    return height, width


def label_pixels(ax: Axes) -> None:
    """Name the units of an image's Axes."""
    ax.set_xlabel("x in pixels", fontsize=9)
    ax.set_ylabel("y in pixels", fontsize=9)
    ax.tick_params(labelsize=8)


def hide_axes(ax: Axes) -> None:
    """No ticks and no names of units: for small pictures in a row."""
    ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


def rows_of(boxes: Boxes) -> list[list[float]]:
    """Boxes (N, 4), or one box (4,), as lists of numbers."""
    if not isinstance(boxes, Tensor):
        boxes = torch.as_tensor(boxes, dtype=torch.float64)
    return boxes.detach().reshape(-1, 4).tolist()


def draw_box(ax: Axes, box: Sequence[float], colour: Any, width: float = 1.5, **style: Any) -> Rectangle:
    """Draw the outline of a box x1 y1 x2 y2."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    options = {"fill": False, "edgecolor": colour, "linewidth": width} | style
    outline = Rectangle((x1, y1), x2 - x1, y2 - y1, **options)
    ax.add_patch(outline)
    return outline


def draw_truth(ax: Axes, boxes: Boxes, label: str = "object") -> None:
    """Draw objects in white with a black rim, to be seen on any picture; the first one is named in the legend."""
    for i, box in enumerate(rows_of(boxes)):
        draw_box(ax, box, "black", 4.5)
        draw_box(ax, box, "white", 2.0, label=label if i == 0 else None)


def draw_tag(ax: Axes, x: float, y: float, text: str, colour: Any, **style: Any) -> Text:
    """Write a short text on a ground of that colour, its lower left corner at x, y."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
    ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
    options: dict[str, Any] = {
        "color": ink,
        "fontsize": 8,
        "ha": "left",
        "va": "bottom",
        "bbox": ground,
        "clip_on": True,
    } | style
    return ax.text(x, y, text, **options)


def write_values(ax: Axes, values: Tensor, ink: str | Callable[[float], str], form: str = ".2f") -> None:
    """Write each value of (H, W) into its cell; ``ink`` is a colour, or a function that gives it for a value."""
    size = 8 if max(values.shape) > 5 else 10
    for y, row in enumerate(values.tolist()):
        for x, value in enumerate(row):
            colour = ink if isinstance(ink, str) else ink(value)
            ax.text(x + 0.5, y + 0.5, format(value, form), ha="center", va="center", fontsize=size, color=colour)


def draw_legend(ax: Axes, **style: Any) -> None:
    """A legend below the Axes, where it hides nothing; white lines are seen on its ground."""
    count = len(ax.get_legend_handles_labels()[1])
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.11), "ncols": min(count, 4)}
    ax.legend(**(place | {"fontsize": 8, "facecolor": "#dddddd", "framealpha": 1.0} | style))
