"""What R-CNN does with a proposal: it is warped with context, an SVM gives it a margin, and its box is refined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detkit.data.image_io import as_image
from detkit.errors import ConfigError
from detkit.features.preprocessing import IMAGENET_MEAN
from detkit.features.warping import crop_geometry, warp
from detkit.show.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    WIDTH,
    axes_or_new,
    draw_box,
    draw_image,
    draw_legend,
    draw_truth,
    hide_axes,
    new_row,
    rows_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detkit.data.image_io import ImageLike
    from detkit.show.canvas import Boxes

PER_ROW = 8  # crops
#: (mode, pixels of context of the crop) of the ways to crop in the paper's appendix A.
WAYS = (("warp", 0), ("warp", 16), ("square", 16), ("square_masked", 16))


def warped_crops(image: ImageLike, box: Tensor, size: int = 227, ways: Sequence[tuple[str, int]] = WAYS) -> Figure:
    """Draw one proposal, and the crops that R-CNN's network is shown of it in several ways.

    Args:
        image: see `detkit.show.proposals`.
        box: (4,), in the image's pixels.
        size: pixels a side of the crops.
        ways: modes and pixels of context, see `detkit.features.warp`.

    Returns:
        a figure: the image with the proposal and what each way cuts out, then a crop for each way, with the proposal's
        part of it dashed where it is a rectangle of its own.
    """
    pixels = as_image(image)
    mean = torch.tensor(IMAGENET_MEAN).mul(255).view(3, 1, 1)  # what lies outside of the image
    figure = new_row(len(ways) + 1, 2.4, widths=[1.5] + [1.0] * len(ways))
    first, *others = figure.axes
    height, width = draw_image(first, pixels)
    hide_axes(first)
    draw_box(first, box.tolist(), ORANGE, 2.5)
    first.set_title("proposal", fontsize=9)
    first.set_xlabel(f"{width} x {height} pixels", fontsize=8)
    for ax, (mode, context) in zip(others, ways, strict=True):
        crop = warp(pixels.float().cpu() - mean, box[None].float(), size, context, mode)[0] + mean
        source = crop_geometry(box[None], (height, width), size, context, mode).source[0]
        draw_box(first, source.tolist(), BLUE, 1.0, linestyle=":")
        ax.imshow(crop.round().clamp(0, 255).byte().permute(1, 2, 0).numpy(), extent=(0, size, size, 0))
        if mode == "warp" and context:
            draw_box(ax, (context, context, size - context, size - context), ORANGE, 1.5, linestyle="--")
        hide_axes(ax)
        ax.set_title(f"{mode}\ncontext {context}", fontsize=9)
        ax.set_xlabel(f"{size} x {size}", fontsize=8)
    return figure


def crops(images: Tensor, titles: Sequence[str] | None = None) -> Figure:
    """Draw crops in rows of up to eight.

    Args:
        images: (N, 3, S, S), RGB, 0 to 255; such as `detkit.features.warp` makes of an image that is not normalised.
        titles: one for each; None: none has any.

    Raises:
        ConfigError: no crops, or not as many titles.
    """
    from matplotlib import pyplot

    count = len(images)
    if not count or (titles is not None and len(titles) != count):
        raise ConfigError(f"{count} crops and {'no' if titles is None else len(titles)} titles: give one each")
    columns = min(count, PER_ROW)
    rows = -(-count // columns)
    height = rows * (WIDTH / columns + (0.2 if titles else 0.0))
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for ax in axes.flat[count:]:
        ax.remove()
    pixels = images.detach().cpu().float().round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    for i, ax in enumerate(axes.flat[:count]):
        ax.imshow(pixels[i])
        hide_axes(ax)
        if titles is not None:
            ax.set_title(titles[i], fontsize=8)
    return figure


def margins(positives: Tensor, negatives: Tensor, ax: Axes | None = None) -> Axes:
    """Draw the margins that an SVM gives to its positives and negatives, as two histograms.

    Args:
        positives: (P,), margins of objects of the class; such as a column of what `LinearSVMs` gives.
        negatives: (N,), of regions that are none.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes; the counts are on a logarithmic axis.

    Raises:
        ConfigError: no number to draw, or one that is not finite.
    """
    groups = {
        "positives": (positives.detach().double().cpu().numpy(), GREEN),
        "negatives": (negatives.detach().double().cpu().numpy(), RED),
    }
    values = np.concatenate([group for group, _ in groups.values()])
    if not len(values) or not np.isfinite(values).all():
        raise ConfigError("margins: give one finite number or more; a class that was not trained has only -inf")
    ax = axes_or_new(ax, 3.4)
    edges = np.linspace(min(values.min(), -1.5), max(values.max(), 1.5), 41)
    for name, (group, colour) in reversed(groups.items()):
        ax.hist(group, edges.tolist(), color=colour, edgecolor="white", linewidth=0.4, label=f"{name}: {len(group):,}")
    hard = int((groups["negatives"][0] > -1).sum())
    ax.axvline(0, color="black", linewidth=1.2)
    for side in (-1, 1):
        ax.axvline(side, color="black", linewidth=0.8, linestyle="--")
    ax.set_yscale("log")
    ax.set_ylim(0.7, 10 * ax.get_ylim()[1])  # room for the legend
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel("margin w x + b: 0 separates; positives have a loss below 1, negatives above -1 (dashed)", fontsize=8)
    ax.set_ylabel("regions (logarithmic)", fontsize=9)
    ax.set_title(f"{hard:,} negatives are hard: their margin is above -1", fontsize=10)
    ax.legend(fontsize=8, loc="upper center", ncols=2)
    return ax


def regression(
    image: ImageLike, proposals: Boxes, boxes: Boxes, truth: Boxes | None = None, ax: Axes | None = None
) -> Axes:
    """Draw box regression: each proposal dashed, the box that it became, and arrows between their corners.

    Args:
        image: see `detkit.show.proposals`.
        proposals: (N, 4), in the image's pixels.
        boxes: (N, 4), each proposal's refined box, such as `BoxCodec.decode` or `RoIHeads.refine` give.
        truth: (G, 4), the objects, drawn white.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image.

    Raises:
        ConfigError: not as many boxes as proposals.
    """
    before, after = rows_of(proposals), rows_of(boxes)
    if len(before) != len(after):
        raise ConfigError(f"{len(after)} refined boxes of {len(before)} proposals: give one each")
    ax = axes_or_new(ax)
    draw_image(ax, image)
    if truth is not None:
        draw_truth(ax, truth)
    for i, (start, end) in enumerate(zip(before, after, strict=True)):
        draw_box(ax, start, ORANGE, 1.8, linestyle="--", label=None if i else "proposal")
        draw_box(ax, end, GREEN, 2.2, label=None if i else "refined box")
        for corner in ((0, 1), (2, 3)):
            tail, head = ((box[corner[0]], box[corner[1]]) for box in (start, end))
            arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", xy=head, xytext=tail, arrowprops=arrow)
    ax.set_title("Box regression moves and scales each proposal", fontsize=10)
    draw_legend(ax)
    return ax
