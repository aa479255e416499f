"""The curves of a run as one SVG: losses, learning rate and mAP over the steps, across the runs it goes on from."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from detkit.engine.checkpoints import run_folder
from detkit.engine.run_files import RunFileCallback, warn_on_error
from detkit.files import write_text

CURVES, LOG, EARLIER = "curves.svg", "metrics.csv", "metrics_before.csv"
#: (title, columns of the log, first letters of further columns of which the first one is drawn).
PANELS = (
    ("loss", ("train/loss", "val/loss"), ""),
    ("learning rate", (), "lr-"),
    ("validation", ("val/map_50", "val/map", "val/accuracy"), ""),
)
NAMES = {"val/map": "mAP", "val/map_50": "AP50", "val/accuracy": "accuracy"}
COLOURS = ("#2f6fde", "#d9480f", "#2b8a3e")
WIDTH, HEIGHT, GAP, LEFT, RIGHT, TOP = 720, 170, 56, 70, 20, 34  # of a panel's axes, and around them
MAX_POINTS = 300  # of a curve; more are averaged
MAX_MARKED = 30  # points that are marked


class Series(NamedTuple):
    """The values of one column of the logs."""

    steps: list[int]
    values: list[float]


class RunCurves(RunFileCallback):
    """Draws `curves.svg` from the CSV logs when a fit ends or is stopped.

    A run that goes on from another one's checkpoint keeps that one's log up to there as `metrics_before.csv`, and draws
    both. Without a CSVLogger nothing is drawn.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.writes or trainer.ckpt_path is None:
            return
        with warn_on_error(EARLIER):
            before = run_folder(trainer.ckpt_path)
            if before.absolute() != self.path("").absolute():
                rows = read_rows([before / EARLIER, before / LOG], until=trainer.global_step)
                write_rows(self.path(EARLIER), rows)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # behind the stages that follow the last epoch
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if not self.writes or not loggers:
            return
        with warn_on_error(CURVES):
            loggers[0].save()
            series = to_series(read_rows([self.path(EARLIER), Path(loggers[0].log_dir) / LOG]))
            if series:
                write_text(self.path(CURVES), draw_curves(series))


def read_rows(logs: Sequence[Path], until: float = math.inf) -> list[dict[str, str]]:
    """The rows of CSV logs, one after the other, whose step is below ``until``; a log that is missing is left out."""
    rows = []
    for path in logs:
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows += [row for row in csv.DictReader(file) if (_number(row.get("step")) or 0.0) < until]
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as CSV, with the columns of all of them; nothing where there are none."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row if name is not None))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def to_series(rows: Sequence[Mapping[str, str]]) -> dict[str, Series]:
    """Column -> its numbers; what is no finite number is left out."""
    series: dict[str, Series] = {}
    for row in rows:
        if (step := _number(row.get("step"))) is None:
            continue
        for name, text in row.items():
            if name not in (None, "step") and (value := _number(text)) is not None:
                column = series.setdefault(name, Series([], []))
                column.steps.append(int(step) + 1)  # the logs count from 0
                column.values.append(value)
    return series


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def draw_curves(series: Mapping[str, Series]) -> str:
    """The SVG: a panel for each of `PANELS` that has values, over the same axis of steps."""
    panels = []
    for title, columns, prefix in PANELS:
        further = [name for name in series if prefix and name.startswith(prefix)][:1]
        if shown := [name for name in (*columns, *further) if name in series]:
            panels.append((title, shown))
    steps = [step for _, shown in panels for name in shown for step in series[name].steps]
    last = max(steps, default=1)
    height = len(panels) * (HEIGHT + GAP) + 10
    width = LEFT + WIDTH + RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, shown) in enumerate(panels):
        parts += _panel(title, {name: series[name] for name in shown}, last, i * (HEIGHT + GAP) + TOP)
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, columns: Mapping[str, Series], last: int, top: int) -> list[str]:
    values = [value for column in columns.values() for value in column.values]
    y_ticks = ticks(min(*values, 0.0), max(values))
    low, high = y_ticks[0], y_ticks[-1]
    x_ticks = [tick for tick in ticks(0, last) if tick <= last]

    def x(step: float) -> float:
        return LEFT + WIDTH * step / last

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / (high - low)

    parts = [f'<text x="{LEFT}" y="{top - 12}" font-weight="bold">{html.escape(title)}</text>']
    for tick in y_ticks:
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{tick:,.6g}</text>')
    name_end = LEFT + WIDTH
    for colour, (name, column) in reversed(list(zip(COLOURS, columns.items(), strict=False))):
        rows = _thin(column)
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(rows) <= MAX_MARKED:
            size = 4.5 if len(rows) == 1 else 2.5  # a single one is all there is of its curve
            parts += [
                f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="{size}" fill="{colour}"/>' for step, value in rows
            ]
        label = html.escape(f"{NAMES.get(name, name)} {column.values[-1]:.4g}")
        parts.append(f'<text x="{name_end}" y="{top - 12}" text-anchor="end" fill="{colour}">{label}</text>')
        name_end -= 8 * len(label) + 12
    return parts


def _thin(column: Series) -> list[tuple[float, float]]:
    """The points of a curve; the means of neighbours where there are too many."""
    rows = list(zip(column.steps, column.values, strict=True))
    size = -(-len(rows) // MAX_POINTS)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers, at equal distances, that enclose ``low`` and ``high``."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > 1e-9 * size else size or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if span / (unit * factor) <= 5)
    first, count = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(count, first + 1) + 1)]
