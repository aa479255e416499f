"""Proposals: boxes on an image, and how many of the objects they cover."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit.boxes import box_iou
from detkit.errors import ConfigError
from detkit.show.canvas import (
    COLOURS,
    ORANGE,
    axes_or_new,
    draw_box,
    draw_image,
    draw_legend,
    draw_tag,
    draw_truth,
    rows_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from detkit.data.image_io import ImageLike
    from detkit.show.canvas import Boxes

BEST = "#00e5ff"  # cyan, seen on photographs and beside orange
MANY = 50  # more boxes are drawn thinner


def proposals(
    image: ImageLike,
    boxes: Boxes,
    truth: Boxes | None = None,
    scores: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw proposals; and, where the objects are known, each object with the proposal that overlaps it most.

    Args:
        image: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W).
        boxes: (N, 4), x1 y1 x2 y2 in the image's pixels; from `detkit.proposals`.
        truth: (G, 4), the objects, drawn white; their best proposals are drawn in cyan, with their IoU.
        scores: (N,), 0 to 1: boxes with a low one are drawn fainter.
        ax: where to draw; None: on a new figure.

    Returns:
        the Axes, in pixels of the image.
    """
    ax = axes_or_new(ax)
    draw_image(ax, image)
    rows = rows_of(boxes)
    strength = [1.0] * len(rows) if scores is None else [max(0.15, float(score)) for score in scores]
    for row, alpha in reversed(list(zip(rows, strength, strict=True))):  # the best is drawn last
        many = len(rows) > MANY
        draw_box(ax, row, ORANGE, 0.6 if many else 1.5, alpha=alpha * (0.6 if many else 1.0))
    ax.set_title(f"{len(rows):,} proposals" if len(rows) != 1 else "1 proposal", fontsize=10)
    if truth is None or not len(truth):
        return ax
    draw_truth(ax, truth)
    if len(rows):
        objects = torch.tensor(rows_of(truth)).reshape(-1, 4)
        overlap, index = box_iou(objects, torch.tensor(rows)).max(1)
        for i, (iou, best) in enumerate(zip(overlap.tolist(), index.tolist(), strict=True)):
            draw_box(ax, rows[best], BEST, 2.0, label=None if i else "best proposal of an object")
            draw_tag(ax, rows[best][0], rows[best][1], f"IoU {iou:.2f}", BEST)
    draw_legend(ax)
    return ax


def recall(results: Mapping[str, Mapping[str, Any]], iou: float = 0.5, ax: Axes | None = None) -> Axes:
    """Draw the recall of ways to propose against the number of proposals, on a logarithmic axis.

    Args:
        results: by name, what `detkit.evaluation.ProposalRecall` computed.
        iou: the threshold at which an object counts as found; one of those that were computed.
        ax: where to draw; None: on a new figure.

    Raises:
        ConfigError: no result, or one without that threshold.
    """
    if not results:
        raise ConfigError("there is nothing to draw: give the result of a ProposalRecall by its name")
    ax = axes_or_new(ax, 3.8)
    for colour, (name, result) in zip(COLOURS * len(results), results.items(), strict=False):
        thresholds = np.asarray(result["iou_thresholds"])
        rows = np.flatnonzero(np.isclose(thresholds, iou))
        if not len(rows):
            raise ConfigError(f"{name}: recall at the IoU {iou:g} was not computed; there is {thresholds.tolist()}")
        given, counts = np.asarray(result["num_proposals"]), np.asarray(result["counts"])
        kept = np.append(True, given[1:] > given[:-1])  # no point where an image has no more proposals
        found = np.asarray(result["recall"])[rows[0]]
        ax.plot(counts[kept], found[kept], "o-", color=colour, markersize=4, label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(0, 1.02)
    ax.grid(alpha=0.3)
    ax.set_xlabel("proposals an image, the first ones (logarithmic)", fontsize=9)
    ax.set_ylabel(f"recall: share of the objects found at IoU {iou:g}", fontsize=9)
    ax.set_title("Recall against number of proposals", fontsize=10)
    ax.legend(fontsize=9, loc="lower right")
    return ax
