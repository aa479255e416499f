"""The results of the benchmarks as pictures: how long an image takes, and where the time goes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.files import write_text
from detkit.tools.benchmark.measuring import Row
from detkit.tools.benchmark.report import as_factor, in_seconds, ratio, ratio_2015
from detkit.tools.benchmark.stage_clock import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#222222", "#666666", "#dddddd"
COLOURS = dict(zip(STAGES, ("#e69f00", "#0072b2", "#009e73", "#bbbbbb"), strict=True))  # colour-blind safe
LEAST_SHARE = 0.13  # parts of a bar below this share are drawn without their seconds
SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "generations",  # the same file from the same numbers
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": LINE,
}


def draw(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Write the picture as SVG: the rows from top to bottom, and the caption below."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", SETTINGS]):
        figure = Figure(figsize=(10, 1.6 + 0.62 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(5, 4))
        for axes in (left, right):
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0)
        left.set_yticks(range(len(rows)), [row.name for row in rows])
        left.set_ylim(len(rows) - 0.4, -0.6)
        _totals(left, rows)
        _shares(right, rows)
        figure.supxlabel(caption, fontsize=8, color=MUTED)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    write_text(path, text.getvalue())


def _totals(axes: Axes, rows: Sequence[Row]) -> None:
    """Dots of this machine's seconds and of the course's table; bars have no zero on a logarithmic scale."""
    heights = range(len(rows))
    axes.scatter([row.total() for row in rows], heights, s=60, color=INK, label="here")
    axes.scatter(
        [row.seconds_2015 for row in rows], heights, s=60, facecolors="none", edgecolors=MUTED, label="in 2015"
    )
    for height, row in enumerate(rows):
        here, then = (row.total(), ratio(rows, row), INK), (row.seconds_2015, ratio_2015(row), MUTED)
        for (seconds, times, colour), above in ((here, True), (then, False)):
            text = f"{in_seconds(seconds) if above else f'{seconds:g}'} s" + (f", {as_factor(times)}" if times else "")
            offset, side = ((0, 8), "bottom") if above else ((0, -8), "top")
            axes.annotate(
                text, (seconds, height), offset, textcoords="offset points", ha="center", va=side, color=colour,
                fontsize=8.5,
            )  # fmt: skip
    values = [value for row in rows for value in (row.total(), row.seconds_2015)]
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2.5, max(values) * 2.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x")
    axes.set_title("seconds an image (logarithmic), and times as fast as R-CNN", fontsize=10, loc="left")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, handletextpad=0.1)


def _shares(axes: Axes, rows: Sequence[Row]) -> None:
    """The time of each generation as one bar, from 0 to 100 %."""
    for stage in STAGES:
        before = [sum(row.seconds[each] for each in STAGES[: STAGES.index(stage)]) / row.total() for row in rows]
        widths = [row.seconds[stage] / row.total() for row in rows]
        axes.barh(range(len(rows)), widths, 0.55, before, color=COLOURS[stage], label=stage)
        for height, (start, width, row) in enumerate(zip(before, widths, rows, strict=True)):
            if width >= LEAST_SHARE:
                text = f"{in_seconds(row.seconds[stage])} s"
                axes.text(start + width / 2, height, text, ha="center", va="center", fontsize=8.5, color="white")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title("where the time goes", fontsize=10, loc="left")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(STAGES), frameon=False, fontsize=8.5,
        handlelength=1, columnspacing=1,
    )  # fmt: skip
