"""The losses of a run, read from its logs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.engine.curves import LOG, read_rows, to_series
from detkit.errors import DataError
from detkit.show.canvas import COLOURS, MUTED, axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFIX = "train/loss_"
#: What the losses of the detectors teach.
MEANINGS = {
    "objectness": "RPN: object or not",
    "rpn_box_reg": "RPN: box",
    "classifier": "head: class",
    "box_reg": "head: box",
}


def losses(run: str | PathLike[str], window: int = 15, ax: Axes | None = None) -> Axes:
    """Draw the training losses of a run over its steps: each as it was logged (faint), and its moving mean.

    Args:
        run: the run's folder, such as runs/demo/version_0, or its metrics.csv.
        window: logged values that the mean is of; at the start it is of those that there are.
        ax: where to draw; None: on a new figure.

    Raises:
        DataError: no log of losses there.
    """
    path = Path(run)
    path = path / LOG if path.is_dir() else path
    series = {name: column for name, column in to_series(read_rows([path])).items() if name.startswith(PREFIX)}
    if not series:
        raise DataError(f"{path}: no losses ({PREFIX}...) are logged there; give a run's folder, which has a {LOG}")
    ax = axes_or_new(ax, 3.8)
    for colour, (name, column) in zip(COLOURS * len(series), sorted(series.items()), strict=False):
        steps, values = np.array(column.steps), np.array(column.values)
        loss = name.removeprefix(PREFIX)
        ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        label = f"{MEANINGS[loss]} (loss_{loss})" if loss in MEANINGS else f"loss_{loss}"
        ax.plot(steps, _moving_mean(values, window), color=colour, linewidth=2, label=label)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25)
    ax.set_xlabel("step of training", fontsize=9)
    ax.set_ylabel("loss", fontsize=9)
    ax.tick_params(labelsize=8, labelcolor=MUTED)
    ax.set_title("Losses of the training", fontsize=10)
    ax.legend(fontsize=8)
    return ax


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and those before it, up to ``window`` of them."""
    sums = np.append(0.0, np.cumsum(values))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)
