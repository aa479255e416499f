"""What a network has learnt and sees: its filters, its feature maps, and the part of the image below a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from detkit.errors import ConfigError
from detkit.features.receptive_field import ReceptiveField
from detkit.show.canvas import COLOURS, WIDTH, axes_or_new, draw_box, draw_image, draw_legend, hide_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detkit.data.image_io import ImageLike

PER_ROW = 8  # filters or maps


def filters(weight: Tensor, titles: Sequence[str] | None = None) -> Figure:
    """Draw weights as images, all on the same scale, in which a weight of 0 has the colour of the middle.

    Args:
        weight: (N, 1, h, w), drawn from blue (negative) over white (0) to red (positive); or (N, 3, h, w), the weights
            of red, green and blue, drawn as a colour in which 0 is mid-grey. Such as ``conv.weight`` of a first layer,
            or the rows of a linear classifier, reshaped to images. Of a layer with more channels give
            one: ``weight[:, :1]``.
        titles: one for each filter; None: none has any.

    Raises:
        ConfigError: another shape, or not as many titles.
    """
    if weight.ndim != 4 or not len(weight) or weight.shape[1] not in (1, 3):
        raise ConfigError(f"filters of 1 or 3 channels are drawn, (N, 1 or 3, h, w), not {tuple(weight.shape)}")
    values = weight.detach().float().cpu()
    largest = max(float(values.abs().max()), 1e-12)
    figure, axes = _grid(len(values), titles)
    for ax, value in zip(axes, values, strict=True):
        if len(value) == 3:
            ax.imshow((value.permute(1, 2, 0) / largest / 2 + 0.5).numpy())
        else:
            drawn = ax.imshow(value[0].numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    if values.shape[1] == 1:
        _colour_bar(figure, drawn, axes, "weight")
    return figure


def feature_maps(maps: Tensor, image: ImageLike | None = None, titles: Sequence[str] | None = None) -> Figure:
    """Draw the channels of a feature map, all on the same scale, from black (small) to yellow (large).

    Args:
        maps: (C, H, W), what a layer makes of one image.
        image: what it was made of, drawn first; the cells are then laid over its pixels.
        titles: one for each channel; None: they are counted from 1.

    Raises:
        ConfigError: another shape, or not as many titles.
    """
    if maps.ndim != 3 or not len(maps):
        raise ConfigError(f"the maps of one image are drawn, (C, H, W), not {tuple(maps.shape)}")
    values = maps.detach().float().cpu()
    names = [f"map {i}" for i in range(1, len(values) + 1)] if titles is None else list(titles)
    extra = [] if image is None else ["image"]
    height, width = values.shape[1:]
    if len(names) != len(values):
        raise ConfigError(f"{len(names)} titles for {len(values)} maps: give one each")
    figure, axes = _grid(len(values) + len(extra), extra + names)
    if image is not None:
        height, width = draw_image(axes[0], image)
        hide_axes(axes[0])
    low, high = float(values.min()), float(values.max())
    for ax, value in zip(axes[len(extra) :], values, strict=True):
        drawn = ax.imshow(value.numpy(), extent=(0, width, height, 0), cmap="inferno", vmin=low, vmax=high)
    _colour_bar(figure, drawn, axes, "value")
    return figure


def receptive_field(
    image: ImageLike,
    fields: Sequence[ReceptiveField],
    point: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw on an image what one cell of each layer sees: of each layer the cell whose centre is nearest to a point.

    Args:
        image: see `detkit.show.proposals`.
        fields: of layers in their order, as `detkit.features.receptive_field.receptive_field` computes them. A layer
            that sees what the layer before it sees, such as a ReLU, is left out.
        point: x, y in the image's pixels; None: the middle of the image.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image; large enough for fields that reach out of it.

    Raises:
        ConfigError: no fields, or a point outside the image.
    """
    if not fields:
        raise ConfigError("there is nothing to draw: give the fields of one layer or more")
    ax = axes_or_new(ax, 5.0)
    height, width = draw_image(ax, image)
    x, y = (width / 2, height / 2) if point is None else point
    if not (0 <= x <= width and 0 <= y <= height):
        raise ConfigError(f"the point {(x, y)} is not on an image of {width} x {height} pixels")
    new = [each for i, each in enumerate(fields) if i == 0 or each[1:] != fields[i - 1][1:]]
    boxes = [_seen(field, x, y) for field in new]
    for i, (field, box) in reversed(list(enumerate(zip(new, boxes, strict=True)))):  # small ones on top
        draw_box(ax, box, "white", 4.0)
        label = f"{field.name}: {field.size} x {field.size} pixels, stride {field.stride}"
        draw_box(ax, box, COLOURS[i % len(COLOURS)], 2.2, label=label)
    margin = 0.02 * max(width, height)
    low, high = np.min(boxes, 0) - margin, np.max(boxes, 0) + margin
    ax.set_xlim(min(0, low[0]), max(width, high[2]))
    ax.set_ylim(max(height, high[3]), min(0, low[1]))
    ax.set_title(f"What one cell of each layer sees: that nearest to x {x:.0f}, y {y:.0f}", fontsize=10)
    draw_legend(ax, ncols=2, reverse=True)
    return ax


def _seen(field: ReceptiveField, x: float, y: float) -> tuple[float, float, float, float]:
    """The field, x1 y1 x2 y2, of the cell whose centre is nearest to a point."""
    centres = [field.offset + field.stride * max(0, round((p - field.offset) / field.stride)) for p in (x, y)]
    half = field.size / 2
    return centres[0] - half, centres[1] - half, centres[0] + half, centres[1] + half


def _grid(count: int, titles: Sequence[str] | None) -> tuple[Figure, list[Axes]]:
    """A new figure of small square Axes without ticks, in rows of about the same length, with their titles."""
    from matplotlib import pyplot

    if titles is not None and len(titles) != count:
        raise ConfigError(f"{len(titles)} titles for {count} pictures: give one each")
    rows = -(-count // PER_ROW)
    columns = -(-count // rows)
    height = rows * (0.9 * WIDTH / max(columns, 3) + (0.2 if titles is not None else 0.05))
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    for ax in axes.flat[count:]:
        ax.remove()
    kept = list(axes.flat[:count])
    for ax, title in zip(kept, titles or [""] * count, strict=True):
        hide_axes(ax)
        ax.set_title(title, fontsize=9)
    return figure, kept


def _colour_bar(figure: Figure, drawn: object, axes: Sequence[Axes], name: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, shrink=0.8)  # type: ignore[arg-type]  # an AxesImage
    bar.set_label(name, fontsize=9)
    bar.ax.tick_params(labelsize=8)
