"""The region proposal network: its anchors, and what it says about each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detkit.boxes import area
from detkit.errors import ConfigError
from detkit.show.canvas import COLOURS, axes_or_new, draw_box, draw_image, draw_legend, hide_axes, new_row, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detkit.data.image_io import ImageLike
    from detkit.show.canvas import Boxes

DOT = "#00e5ff"  # cyan, seen on photographs and on the map of scores
STYLES = ("-", "--", ":", "-.")


def anchors(
    image: ImageLike,
    boxes: Boxes,
    feature_size: tuple[int, int],
    cell: tuple[int, int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the centres of all anchors of a feature map, and the anchors of one of its cells.

    Args:
        image: the image; see `detkit.show.proposals`.
        boxes: (H * W * A, 4), the anchors of a level, as `AnchorGenerator` gives them.
        feature_size: (H, W) of the map.
        cell: (row, column) of the cell whose anchors are drawn, one colour for each area and one line style
            for each ratio; None: the middle one.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image; large enough for anchors that reach out of it.

    Raises:
        ConfigError: a number of anchors that is no multiple of the map's cells, or a cell outside it.
    """
    height, width = feature_size
    rows = torch.tensor(rows_of(boxes)).reshape(-1, 4)
    count, rest = divmod(len(rows), height * width)
    if rest or not count:
        raise ConfigError(
            f"{len(rows):,} anchors do not fit a map of {height} x {width} cells: give those of one level"
        )
    row, column = cell or (height // 2, width // 2)
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(f"cell {(row, column)} is not on a map of {height} x {width} cells, counted from 0")
    ax = axes_or_new(ax, 5.0)
    image_height, image_width = draw_image(ax, image)
    centres = (rows[::count, :2] + rows[::count, 2:]) / 2
    x, y = centres.T.tolist()
    ax.scatter(x, y, s=4, color=DOT, linewidths=0, label=f"centres, {height} x {width}")
    own = rows[(row * width + column) * count :][:count]
    sides = area(own).sqrt().tolist()
    ratios = ((own[:, 3] - own[:, 1]) / (own[:, 2] - own[:, 0])).tolist()
    groups: list[list[int]] = []
    for i, side in enumerate(sides):
        # The rounding of an anchor's sides changes its area a little.
        alike = next((group for group in groups if abs(sides[group[0]] / side - 1) < 0.1), None)
        if alike is None:
            groups.append(alike := [])
        alike.append(i)
    squares = [sides[min(group, key=lambda i: abs(math.log(ratios[i])))] for group in groups]
    for i, box in enumerate(own.tolist()):
        number, nth = next((n, group.index(i)) for n, group in enumerate(groups) if i in group)
        label = None if nth else f"area {squares[number]:.0f} x {squares[number]:.0f}"
        style = STYLES[nth % len(STYLES)]
        draw_box(ax, box, COLOURS[number % len(COLOURS)], 2.0, label=label, linestyle=style)
    largest = max(groups, key=lambda group: sides[group[0]])  # its rounding changes the ratios least
    for nth, i in enumerate(largest if 1 < len(largest) <= len(STYLES) else []):
        ax.plot([], [], color="black", linestyle=STYLES[nth], label=f"height / width {ratios[i]:.2g}")
    low, high = own[:, :2].amin(0).tolist(), own[:, 2:].amax(0).tolist()
    ax.set_xlim(min(0, low[0] - 5), max(image_width, high[0] + 5))
    ax.set_ylim(max(image_height, high[1] + 5), min(0, low[1] - 5))
    ax.set_title(f"{count} anchors of one cell; {height} x {width} x {count} = {len(rows):,} in all", fontsize=10)
    draw_legend(ax, markerscale=3)
    return ax


def objectness(image: ImageLike, scores: Tensor, names: Sequence[str] | None = None) -> Figure:
    """Draw what a region proposal network says about every anchor: a picture for each anchor of a cell.

    Args:
        image: as the network saw it.
        scores: (A, H, W) in 0..1: one image of what `RegionProposalNetwork.score_maps` gives. Its cells are laid over
            the image.
        names: of the A anchors; None: they are counted.

    Raises:
        ConfigError: no anchor, or not as many names as anchors.
    """
    names = [f"anchor {i}" for i in range(1, len(scores) + 1)] if names is None else list(names)
    if len(names) != len(scores) or not names:
        raise ConfigError(f"{len(names)} names for {len(scores)} anchors: give one each, and one or more")
    figure = new_row(len(scores) + 1, 2.3)
    first, *others = figure.axes
    height, width = draw_image(first, image)
    first.set_title("image", fontsize=10)
    hide_axes(first)
    for ax, name, score in zip(others, names, scores.detach().float().cpu().numpy(), strict=True):
        draw_image(ax, image, alpha=0.35)
        drawn = ax.imshow(score, extent=(0, width, height, 0), vmin=0, vmax=1, cmap="inferno", alpha=0.8)
        ax.set_title(f"{name}\nbest {score.max():.2f}", fontsize=9)
        hide_axes(ax)
    bar = figure.colorbar(drawn, ax=others, fraction=0.05, shrink=0.8)
    bar.set_label("objectness", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure
