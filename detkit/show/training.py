"""The losses of a run, read from its logs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.engine.curves import LOG, read_rows, to_series
from detkit.errors import DataError
from detkit.show.canvas import COLOURS, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFIX = "train/loss_"
#: What the losses of the detectors teach.
MEANINGS = {
    "objectness": "region proposal network: object or not",
    "rpn_box_reg": "region proposal network: box",
    "classifier": "head: class",
    "box_reg": "head: box",
}


def losses(run: str | PathLike[str], window: int = 15) -> Figure:
    """Draw the training losses of a run over its steps, a picture for each, with an axis of its own that begins at 0.

    Args:
        run: the run's folder, such as runs/demo/version_0, or its metrics.csv.
        window: what is drawn thick is the mean of so many logged values; of those that there are at the start.

    Raises:
        DataError: no log of losses there.
    """
    from matplotlib import pyplot

    path = Path(run)
    path = path / LOG if path.is_dir() else path
    series = {name: column for name, column in to_series(read_rows([path])).items() if name.startswith(PREFIX)}
    if not series:
        raise DataError(f"{path}: no losses ({PREFIX}...) are logged there; give a run's folder, which has a {LOG}")
    columns = min(2, len(series))
    rows = -(-len(series) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(WIDTH, 0.4 + 2.0 * rows), layout="constrained", sharex=True, squeeze=False
    )
    for ax in axes.flat[len(series) :]:
        ax.remove()
    known = {name: position for position, name in enumerate(MEANINGS)}
    in_order = sorted(series, key=lambda name: known.get(name.removeprefix(PREFIX), len(known)))
    for ax, colour, name in zip(axes.flat, COLOURS * len(series), in_order, strict=False):
        steps, values = np.array(series[name].steps), np.array(series[name].values)
        ax.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        mean = moving_mean(values, window)
        ax.plot(steps, mean, color=colour, linewidth=2.2)
        ax.set_ylim(0, max(1.3 * mean.max(), 1e-6))
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=8)
        loss = name.removeprefix(PREFIX)
        ax.set_title(f"loss_{loss}" + (f"\n{MEANINGS[loss]}" if loss in MEANINGS else ""), fontsize=9)
    figure.supxlabel("step of training", fontsize=9)
    figure.supylabel("loss", fontsize=9)
    return figure


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and those before it, up to ``window`` of them."""
    sums = np.append(0.0, np.cumsum(values))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / (last - first)
