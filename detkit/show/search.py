"""Selective search, step by step: the initial regions, and what becomes of them as they are merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from detkit.drawing import colour
from detkit.errors import ConfigError
from detkit.show.canvas import WIDTH, axes_or_new, draw_box, label_pixels

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

    from detkit.proposals.selective_search.grouping import Hierarchy


def segmentation(labels: np.ndarray, ax: Axes | None = None) -> Axes:
    """Draw the regions of an image, each in a colour of its own, with white lines between them.

    Args:
        labels: (H, W) integers from 0, such as `Segmentations.labels` gives; a region has the same colour in every
            picture.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image.
    """
    ax = axes_or_new(ax)
    _draw_regions(ax, np.asarray(labels))
    ax.set_title(f"{len(np.unique(labels)):,} regions", fontsize=10)
    label_pixels(ax)
    return ax


def grouping(labels: np.ndarray, hierarchy: Hierarchy, merges: int, ax: Axes | None = None) -> Axes:
    """Draw the regions after so many merges, and the box of the region that the last one made.

    Args:
        labels: (H, W), the initial regions.
        hierarchy: what `group` made of them.
        merges: 0 to as many as there are.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image.

    Raises:
        ConfigError: labels that the hierarchy does not know, or more merges than there are.
    """
    labels = np.asarray(labels)
    if labels.max() >= hierarchy.initial:
        raise ConfigError(
            f"the grouping began with {hierarchy.initial} regions, the labels go up to {labels.max()}: give the label "
            "map from which it was made"
        )
    regions = hierarchy.regions_after(merges)
    ax = axes_or_new(ax)
    _draw_regions(ax, _keep_colours(regions, hierarchy, merges)[labels])
    left = hierarchy.initial - merges
    title = f"{left} region{'s' if left != 1 else ''} after {merges} merge{'s' if merges != 1 else ''}"
    if merges:
        box = hierarchy.boxes[hierarchy.initial + merges - 1].tolist()
        draw_box(ax, box, "black", 4.0)
        draw_box(ax, box, "white", 2.0)
        title += f"\nbox of the last merge, similarity {hierarchy.similarity[merges - 1]:.2f}"
    ax.set_title(title, fontsize=9)
    label_pixels(ax)
    return ax


def grouping_animation(labels: np.ndarray, hierarchy: Hierarchy, frames: int = 16) -> FuncAnimation:
    """The grouping from the initial regions to one, as an animation; its first picture has no merge, its last one all.

    The number of regions falls by the same factor from picture to picture.

    Args:
        labels, hierarchy: see `grouping`.
        frames: number of pictures, at most; 2 or more.

    Returns:
        matplotlib's animation: ``animation.save("grouping.gif", writer="pillow")`` writes a file, and
        ``animation.to_jshtml()`` is a player for a notebook. Its figure is not one of pyplot's.

    Raises:
        ConfigError: as `grouping`, or fewer than 2 frames.
    """
    from matplotlib.animation import FuncAnimation
    from matplotlib.figure import Figure

    if frames < 2:
        raise ConfigError(f"an animation has 2 frames or more, not {frames}")
    height, width = labels.shape
    figure = Figure(figsize=(WIDTH, WIDTH * min(1.2, height / width) + 0.6), layout="constrained")
    ax = figure.subplots()
    left = np.unique(np.geomspace(1, hierarchy.initial, frames).round().astype(int))[::-1]

    def draw(regions_left: int) -> None:
        ax.clear()
        grouping(labels, hierarchy, hierarchy.initial - regions_left, ax)

    return FuncAnimation(figure, draw, frames=left.tolist(), init_func=lambda: None, interval=600)


def _keep_colours(regions: np.ndarray, hierarchy: Hierarchy, merges: int) -> np.ndarray:
    """For each initial region the number of the largest one it was merged with: so that colours change little."""
    keeper = np.arange(hierarchy.initial + merges)
    for merge, children in enumerate(hierarchy.children[:merges].tolist()):
        keeper[hierarchy.initial + merge] = keeper[max(children, key=lambda child: hierarchy.sizes[child])]
    return keeper[regions]


def _draw_regions(ax: Axes, labels: np.ndarray) -> None:
    palette = np.array([colour(label + 1) for label in range(int(labels.max()) + 1)], np.uint8)
    picture = palette[labels]
    border = np.zeros(labels.shape, bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    picture[border] = 255
    height, width = labels.shape
    ax.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
