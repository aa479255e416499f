"""Overlap of boxes: intersection over union, and non-maximum suppression step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detkit.boxes import box_iou, nms_steps
from detkit.errors import ConfigError
from detkit.show.canvas import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    WIDTH,
    axes_or_new,
    draw_box,
    draw_image,
    draw_tag,
    hide_axes,
    label_pixels,
    rows_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detkit.data.image_io import ImageLike
    from detkit.show.canvas import Boxes

MAX_STEPS = 11  # that are drawn


def iou(a: Boxes, b: Boxes, image: ImageLike | None = None, ax: Axes | None = None) -> Axes:
    """Draw two boxes, what they share, and their intersection over union.

    Args:
        a: (4,), such as an object.
        b: (4,), such as a detection.
        image: drawn below; None: a white ground around the boxes.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels.
    """
    (first,), (second,) = rows_of(a), rows_of(b)
    ax = axes_or_new(ax)
    if image is not None:
        draw_image(ax, image)
    shared = [max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])]
    for box, colour, name in ((first, BLUE, "object"), (second, ORANGE, "detection")):
        draw_box(ax, box, colour, 2.5, fill=True, facecolor=(*_rgb(colour), 0.15), label=name)
    if shared[2] > shared[0] and shared[3] > shared[1]:
        draw_box(ax, shared, "none", 0, fill=True, facecolor=(*_rgb(GREEN), 0.5), label="intersection")
    value = float(box_iou(torch.tensor([first]).double(), torch.tensor([second]).double()))
    ax.set_title(f"IoU {value:.2f}", fontsize=11)
    if image is None:
        both = torch.tensor([first, second])
        (left, top), (right, bottom) = both[:, :2].amin(0).tolist(), both[:, 2:].amax(0).tolist()
        gap = 0.08 * max(right - left, bottom - top)
        ax.set(xlim=(left - gap, right + gap), ylim=(bottom + gap, top - gap), aspect="equal")
        label_pixels(ax)
    return ax


def nms(image: ImageLike, boxes: Tensor, scores: Tensor, iou_threshold: float) -> Figure:
    """Draw non-maximum suppression: a picture of the boxes, one of each step, and one of the boxes that are kept.

    In each step the best box that is left is kept (green), and those that overlap it by more than the threshold are
    suppressed (red, with their IoU). Boxes that are still to come are orange.

    Args:
        image: see `detkit.show.proposals`.
        boxes: (N, 4), of one class, in the image's pixels.
        scores: (N,).
        iou_threshold: 0 to 1.

    Raises:
        ConfigError: no boxes, or more than `MAX_STEPS` steps: too many to look at.
    """
    from matplotlib import pyplot

    steps = nms_steps(boxes, scores, iou_threshold)
    if not 0 < len(steps) <= MAX_STEPS:
        raise ConfigError(f"suppression in {len(steps)} steps cannot be drawn: give boxes that take 1 to {MAX_STEPS}")
    rows, values = rows_of(boxes), scores.tolist()
    count = len(steps) + 2
    columns = 2 if count == 4 else 3
    lines = -(-count // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(WIDTH, 7.2 / columns * lines), layout="constrained", squeeze=False
    )
    first, *middle, last = axes.flat[:count]
    for ax in axes.flat[count:]:
        ax.remove()
    left = set(range(len(rows)))
    _draw_boxes(first, image, rows, dict.fromkeys(left, ORANGE), {i: f"{values[i]:.2f}" for i in left})
    first.set_title(f"{len(rows)} boxes, with scores", fontsize=9)
    kept: list[int] = []
    for number, (ax, step) in enumerate(zip(middle, steps, strict=True), start=1):
        out = step.suppressed.tolist()
        left -= {step.kept, *out}
        colours = dict.fromkeys(left, ORANGE) | dict.fromkeys(out, RED) | {step.kept: GREEN}
        texts = {i: f"IoU {overlap:.2f}" for i, overlap in zip(out, step.ious.tolist(), strict=True)}
        _draw_boxes(ax, image, rows, colours, texts | {step.kept: f"{values[step.kept]:.2f}"})
        removed = f"{len(out)} overlap{'s' if len(out) == 1 else ''} it" if out else "none overlaps it"
        ax.set_title(f"step {number}: keep {values[step.kept]:.2f}, {removed}", fontsize=9)
        kept.append(step.kept)
    _draw_boxes(last, image, rows, dict.fromkeys(kept, GREEN), {i: f"{values[i]:.2f}" for i in kept})
    last.set_title(f"{len(kept)} kept (IoU at most {iou_threshold:g})", fontsize=9)
    return figure


def _draw_boxes(
    ax: Axes, image: ImageLike, rows: list[list[float]], colours: dict[int, str], texts: dict[int, str]
) -> None:
    """Draw some of the boxes, and no more of the image than lies around all of them."""
    height, width = draw_image(ax, image, alpha=0.75)
    hide_axes(ax)
    for i, colour in colours.items():
        draw_box(ax, rows[i], colour, 2.0, linestyle="--" if colour == RED else "-")
    for i, text in texts.items():
        # Boxes that overlap have corners close together: each box has its text at another one.
        x, y = rows[i][0 if i % 2 == 0 else 2], rows[i][1 if i % 4 < 2 else 3]
        place = {"ha": "left" if i % 2 == 0 else "right", "va": "bottom" if i % 4 < 2 else "top"}
        draw_tag(ax, x, y, text, colours[i], fontsize=7, **place)
    lefts, tops, rights, bottoms = zip(*rows, strict=True)
    gap = 0.08 * max(max(rights) - min(lefts), max(bottoms) - min(tops))
    ax.set_xlim(max(min(lefts) - gap, 0), min(max(rights) + gap, width))
    ax.set_ylim(min(max(bottoms) + gap, height), max(min(tops) - gap, 0))


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)
