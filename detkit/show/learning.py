"""How networks learn: class probabilities, curves, the paths of optimizers, and what layers pass on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detkit.errors import ConfigError
from detkit.show.canvas import BLUE, COLOURS, GREEN, MUTED, WIDTH, axes_or_new, draw_image, hide_axes, new_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detkit.data.image_io import ImageLike

STYLES = ("-", "--", "-.", ":")
MARKED = 12  # points of a curve up to which each is marked


def probabilities(image: ImageLike, logits: Tensor, class_names: Sequence[str], label: int | None = None) -> Figure:
    """Draw an image and, beside it, the softmax of its class scores as bars.

    Args:
        image: see `detkit.show.proposals`.
        logits: (K,), such as a row of what `ImageClassifier` gives.
        class_names: of the K classes.
        label: the right class, 0..K-1, whose bar is green; None: it is not known.

    Raises:
        ConfigError: not as many scores as classes, or a label that is none of them.
    """
    count = len(class_names)
    if logits.shape != (count,) or not (label is None or 0 <= label < count):
        raise ConfigError(f"scores {tuple(logits.shape)} and label {label} do not fit {count} classes, 0..{count - 1}")
    scores = logits.detach().double().cpu()
    shares = torch.softmax(scores, 0).tolist()
    figure = new_row(2, max(2.4, 0.6 + 0.22 * count), widths=(1.0, 2.0))
    left, right = figure.axes
    draw_image(left, image)
    hide_axes(left)
    left.set_title("image" if label is None else f"image, class {class_names[label]}", fontsize=10)
    colours = [GREEN if i == label else BLUE for i in range(count)]
    right.barh(range(count), shares, color=colours)
    for i, (share, score) in enumerate(zip(shares, scores.tolist(), strict=True)):
        right.text(share + 0.02, i, f"{share:.3f}  (score {score:.2f})", va="center", fontsize=8)
    right.set_yticks(range(count), class_names, fontsize=8)
    right.tick_params(axis="x", labelsize=8)
    right.set_xlim(0, 1.4)  # room for the numbers
    right.set_xticks([0, 0.25, 0.5, 0.75, 1])
    right.invert_yaxis()
    right.set_xlabel("probability: softmax of the scores", fontsize=9)
    right.set_ylabel("class", fontsize=9)
    right.set_title("Scores become probabilities", fontsize=10)
    return figure


def curves(
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    title: str,
    x: Sequence[float] | None = None,
    logarithmic: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw numbers by name as curves, such as losses over steps or the gradient of each layer.

    Args:
        series: the values of each curve; where they are few, each is marked.
        x_label: what the values are drawn over.
        y_label: what they are.
        title: what is to be seen.
        x: where the values are; None: they are counted from 1.
        logarithmic: the axes that are: "", "x", "y" or "xy".
        ax: where to draw; None: on a new figure.

    Raises:
        ConfigError: no curve, or a number of values other than that of ``x``.
    """
    if not series:
        raise ConfigError("there is nothing to draw: give the values of a curve by its name")
    for name, values in series.items():
        if x is not None and len(values) != len(x):
            raise ConfigError(f"{name} has {len(values)} values for {len(x)} positions: give one each")
    ax = axes_or_new(ax, 3.6)
    for i, (name, values) in enumerate(series.items()):
        positions = range(1, len(values) + 1) if x is None else x
        style = ("o" if len(values) <= MARKED else "") + STYLES[i % len(STYLES)]
        ax.plot(positions, values, style, color=COLOURS[i % len(COLOURS)], markersize=5, label=name)
    ax.set_xscale("log" if "x" in logarithmic else "linear")
    ax.set_yscale("log" if "y" in logarithmic else "linear")
    if "x" in logarithmic and x is not None and len(x) <= MARKED:
        ax.set_xticks(list(x), [f"{value:g}" for value in x])
        ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.tick_params(labelsize=8)
    ax.set_xlabel(x_label, fontsize=9)
    ax.set_ylabel(y_label, fontsize=9)
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return ax


def descent(
    surface: Callable[[Tensor], Tensor],
    paths: Mapping[str, Tensor],
    limits: tuple[float, float, float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the paths of optimizers over the contour lines of what they minimise, a function of two weights.

    Args:
        surface: gives the losses (N,) of weights (N, 2); 0 or more.
        paths: by name, the weights (T + 1, 2) from the start to after the last step; each point is marked.
        limits: x1, x2, y1, y2 of the part that is drawn; None: what the paths need.
        ax: where to draw; None: on a new figure.

    Raises:
        ConfigError: no path, or one of another shape.
    """
    if not paths or any(path.ndim != 2 or path.shape[1] != 2 or not len(path) for path in paths.values()):
        shapes = {name: tuple(path.shape) for name, path in paths.items()}
        raise ConfigError(f"paths are given by name, each of shape (T + 1, 2), not {shapes}")
    ax = axes_or_new(ax, 3.8)
    drawn = {name: path.detach().double().cpu() for name, path in paths.items()}
    x1, x2, y1, y2 = limits or _limits(torch.cat(list(drawn.values())))
    x, y = torch.linspace(x1, x2, 201), torch.linspace(y1, y2, 201)
    heights = surface(torch.cartesian_prod(x, y)).detach().double().reshape(201, 201).T.clamp(min=0)
    top = max(float(heights.max()), 1e-12)
    levels = (top * np.linspace(0, 1, 11)[1:] ** 2).tolist()  # closer together towards the minimum
    ax.contour(x.numpy(), y.numpy(), heights.numpy(), levels=levels, colors=MUTED, linewidths=0.6)
    for i, (name, path) in enumerate(drawn.items()):
        colour = COLOURS[i % len(COLOURS)]
        ax.plot(path[:, 0].numpy(), path[:, 1].numpy(), "o-", color=colour, markersize=3, linewidth=1.3, label=name)
    start = next(iter(drawn.values()))[0].tolist()
    ax.plot(*start, "s", color="black", markersize=6, label="start")
    ax.set(xlim=(x1, x2), ylim=(y1, y2))
    ax.tick_params(labelsize=8)
    ax.set_xlabel("first weight", fontsize=9)
    ax.set_ylabel("second weight", fontsize=9)
    ax.set_title("Steps over the contour lines of the loss", fontsize=10)
    ax.legend(fontsize=8)
    return ax


def _limits(points: Tensor) -> tuple[float, float, float, float]:
    """A rectangle with a margin around points."""
    low, high = points.amin(0), points.amax(0)
    margin = (0.1 * (high - low)).clamp(min=0.1)
    (x1, y1), (x2, y2) = (low - margin).tolist(), (high + margin).tolist()
    return x1, x2, y1, y2


def distributions(rows: Mapping[str, Sequence[Tensor]], limits: tuple[float, float] | None = None) -> Figure:
    """Draw what layers pass on as histograms: a row for each network, a column for each layer, on the same scale.

    Args:
        rows: by name, the outputs of the layers of a network, of any shape; of each network as many layers.
        limits: the smallest and the largest value that is drawn; None: of all there are.

    Returns:
        a figure; above each histogram stands the standard deviation of its values.

    Raises:
        ConfigError: no layer, or networks of different numbers of layers.
    """
    from matplotlib import pyplot

    counts = {len(layers) for layers in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise ConfigError(f"give the same number of layers for each network, 1 or more, not {sorted(counts)}")
    layers = {name: [each.detach().double().flatten().cpu() for each in row] for name, row in rows.items()}
    values = torch.cat([each for row in layers.values() for each in row])
    low, high = limits or (float(values.min()), float(values.max()))
    edges = np.linspace(low, high, 31).tolist()
    size = (WIDTH, 0.5 + 1.35 * len(rows))
    figure, axes = pyplot.subplots(len(rows), *counts, figsize=size, layout="constrained", squeeze=False)
    for i, (name, row) in enumerate(layers.items()):
        for j, (ax, each) in enumerate(zip(axes[i], row, strict=True)):
            ax.hist(each.clamp(low, high).numpy(), edges, color=COLOURS[i % len(COLOURS)])
            ax.set(yticks=[], xlim=(low, high))
            ax.tick_params(labelsize=7)
            deviation = f"std {each.std(correction=0):.2g}"
            ax.set_title(f"layer {j + 1}\n{deviation}" if i == 0 else deviation, fontsize=8)
        axes[i, 0].set_ylabel(name, fontsize=9)
    figure.supxlabel("output of a unit; heights: how many, each picture on its own scale", fontsize=9)
    return figure
