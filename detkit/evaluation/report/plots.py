"""The report's plots: each a function from numbers to an `<svg>` element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from .svg import ACCENT, BAD, GOOD, INK, KIND_COLOURS, LINE, MUTED, SERIES, drawing, new_figure, plain_label, to_svg

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from detkit.evaluation.curves import ClassCurve, WorkingPoint
    from detkit.evaluation.sensitivity import Bin

WIDTH = 4.2  # inches, of most plots
RECALLS = np.linspace(0.0, 1.0, 101)
FEW_CLASSES = len(SERIES)  # so many have a colour each
MOST_CELLS = 20  # classes up to which the confusion matrix has its counts written in


def envelope(curve: ClassCurve, recalls: np.ndarray = RECALLS) -> np.ndarray:
    """Best precision at each recall or above, 0 where no recall is as high: COCO's AP is its mean over 101 recalls.

    A best-F1 working point always lies on it: a point to its right of no lower precision would have a better F1.
    """
    result = np.zeros(len(recalls))
    if len(curve.recall) and curve.num_objects:
        best = np.maximum.accumulate(curve.precision[::-1])[::-1]
        at = np.searchsorted(curve.recall, recalls, side="left")
        result[at < len(best)] = best[at[at < len(best)]]
    return result


def curves_overview(curves: Sequence[ClassCurve], points: Sequence[WorkingPoint], names: Sequence[str]) -> Markup:
    """All classes' precision-recall curves; coloured and named where they are few, else faint behind their mean."""
    shown = [(c, p, n) for c, p, n in zip(curves, points, names, strict=True) if c.num_objects]
    with drawing("curves"):
        figure, axes = new_figure(WIDTH, 3.6)
        _unit_square(axes)
        few = len(shown) <= FEW_CLASSES
        for number, (curve, point, name) in enumerate(shown):
            colour = SERIES[number] if few else MUTED
            axes.plot(*_drawn(curve), color=colour, linewidth=1.6 if few else 0.6, alpha=1 if few else 0.45)
            # A label that begins with "_" would be left out of the legend.
            axes.lines[-1].set_label("\N{ZERO WIDTH SPACE}" + plain_label(name) if few else "_")
            if few:
                _dot(axes, point, colour)
        if len(shown) > 1:
            mean = np.mean([envelope(curve) for curve, _, _ in shown], axis=0)
            axes.plot(RECALLS, mean, color=INK, linewidth=1.8, linestyle="--" if few else "-", label="mean of classes")
        if shown:
            # Outside the axes: no curve may run beneath it.
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=1.6)
        best = "" if few else " The mean is bold."
        return to_svg(figure, "curves", f"Precision against recall at IoU 0.5 for {len(shown)} classes.{best}")


def class_curves(curves: Sequence[ClassCurve], points: Sequence[WorkingPoint], names: Sequence[str]) -> list[Markup]:
    """Each class's curve, small, with its working point."""
    from matplotlib.figure import Figure

    result = []
    with drawing("curve"):
        # One pair of axes for all: most of the time would go into making them.
        figure = Figure(figsize=(2.2, 1.5))
        axes = figure.add_axes((0.13, 0.15, 0.83, 0.79))
        _unit_square(axes, labels=False)
        for curve, point, name in zip(curves, points, names, strict=True):
            recall, precision = _drawn(curve)
            ground = [0, *recall, recall[-1]], [0, *precision, 0]
            drawn = axes.fill(*ground, color=ACCENT, alpha=0.14, linewidth=0, clip_on=False)
            drawn += axes.plot(recall, precision, color=ACCENT, linewidth=1.4, clip_on=False)
            drawn += _dot(axes, point, INK)
            result.append(to_svg(figure, f"curve{curve.label}", f"Precision against recall of {name}"))
            for artist in drawn:
                artist.remove()
    return result


def error_bars(kinds: Mapping[str, float], false_positives: float, false_negatives: float) -> Markup:
    """AP points that the repair of each kind of error would give; below, of all false positives and all misses."""
    names = [*kinds, "all false positives", "all missed objects"]
    values = [100 * value for value in (*kinds.values(), false_positives, false_negatives)]
    colours = [*(KIND_COLOURS[kind] for kind in kinds), MUTED, MUTED]
    positions = np.array([*range(len(kinds)), len(kinds) + 0.6, len(kinds) + 1.6])
    with drawing("errors"):
        figure, axes = new_figure(WIDTH, 3.2)
        axes.barh(positions, np.nan_to_num(values), height=0.62, color=colours)
        _bar_texts(axes, positions, values)
        axes.axhline(len(kinds) - 0.2, color=LINE, linewidth=0.8)
        axes.set_yticks(positions, names)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        axes.spines["bottom"].set_visible(False)
        axes.set_xlim(0, max(1.0, *np.nan_to_num(values)) * 1.15)
        axes.set_xlabel("AP50 points to gain")
        axes.grid(axis="x")
        words = ", ".join(f"{name} {_points(value)}" for name, value in zip(names, values, strict=True))
        return to_svg(figure, "errors", f"AP50 points that are lost to each kind of error: {words}")


def confusion_heat_map(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    """Shares of each row; counts written in where there is room.

    Args:
        matrix: (n, n) counts, rows ground truth, columns detected.
        names: n names for both.
    """
    size = len(names)
    names = [plain_label(name, 16) for name in names]
    with drawing("confusion"):
        from matplotlib.colors import LinearSegmentedColormap

        side = 1.2 + size * (0.42 if size <= FEW_CLASSES else 0.34 if size <= MOST_CELLS else 0.15)
        figure, axes = new_figure(side, side)
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        # Of one colour, more or less transparent: legible on a light ground and on a dark one.
        shades = LinearSegmentedColormap.from_list("shades", [(0.16, 0.47, 0.84, 0.0), (0.16, 0.47, 0.84, 1.0)])
        axes.imshow(share, cmap=shades, vmin=0, vmax=1, interpolation="none")
        if size <= MOST_CELLS:
            for (row, column), count in np.ndenumerate(matrix):
                if count:
                    dark = share[row, column] > 0.55
                    ink = "white" if dark else INK if row == column else MUTED
                    axes.text(column, row, _short(count), ha="center", va="center", fontsize=9, color=ink)
        small = 9 if size <= MOST_CELLS else 6.5
        axes.set_xticks(range(size), names, rotation=90, fontsize=small)
        axes.set_yticks(range(size), names, fontsize=small)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xlabel("detected as")
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("ground truth")
        for spine in axes.spines.values():
            spine.set_visible(False)
        for edge in np.arange(size + 1) - 0.5 if size <= MOST_CELLS else [-0.5, size - 1.5, size - 0.5]:
            axes.axhline(edge, color=LINE, linewidth=0.7)
            axes.axvline(edge, color=LINE, linewidth=0.7)
        return to_svg(figure, "confusion", f"Confusion matrix of {size - 1} classes and the background")


def bin_bars(bins: Sequence[Bin], name: str, alt: str) -> Markup:
    """AP and recall of each bin, side by side, with its number of objects beneath."""
    with drawing(name):
        figure, axes = new_figure(WIDTH, 2.3)
        positions = np.arange(len(bins))
        for offset, colour, label in ((-0.19, ACCENT, "AP50"), (0.19, MUTED, "recall")):
            values = [b.ap if label == "AP50" else b.recall for b in bins]
            axes.bar(positions + offset, np.nan_to_num(values), width=0.35, color=colour, label=label)
            for x, value in zip(positions + offset, values, strict=True):
                text = "n/a" if math.isnan(value) else f"{value:.2f}"
                axes.text(x, np.nan_to_num(value) + 0.02, text, ha="center", va="bottom", fontsize=8, color=MUTED)
        axes.set_ylim(0, 1.12)
        axes.set_yticks([0, 0.5, 1])
        axes.set_xticks(positions, [f"{plain_label(b.name, 14)}\n{_short(b.objects)}" for b in bins])
        axes.tick_params(length=0)
        axes.tick_params(axis="x", labelcolor=INK)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9, handlelength=1)
        words = "; ".join(f"{b.name}: AP50 {_unit(b.ap)}, recall {_unit(b.recall)}, {b.objects} objects" for b in bins)
        return to_svg(figure, name, f"{alt}. {words}")


def difference_bars(names: Sequence[str], differences: Sequence[float]) -> Markup:
    """Differences in AP points, class by class, to the right where this run is better."""
    values = [100 * value for value in differences]
    with drawing("differences"):
        figure, axes = new_figure(WIDTH, 0.7 + 0.24 * len(values))
        positions = np.arange(len(values))
        axes.barh(positions, values, height=0.62, color=[GOOD if value >= 0 else BAD for value in values])
        reach = max(1.0, *map(abs, values)) * 1.3
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for y, value in zip(positions, values, strict=True):
            side = {"ha": "left", "x": value + reach / 60} if value >= 0 else {"ha": "right", "x": value - reach / 60}
            axes.text(y=y, s=f"{value:+.1f}".replace("-", "\N{MINUS SIGN}"), va="center", fontsize=9, color=INK, **side)
        axes.set_yticks(positions, [plain_label(name) for name in names])
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel("AP points against the baseline")
        words = ", ".join(f"{name} {value:+.1f}" for name, value in zip(names, values, strict=True))
        return to_svg(figure, "differences", f"Difference in AP points: {words}")


def _drawn(curve: ClassCurve) -> tuple[np.ndarray, np.ndarray]:
    """Recalls and precisions to draw: at most 102 points, as far as the curve reaches."""
    last = float(curve.recall[-1]) if len(curve.recall) and curve.num_objects else 0.0
    recalls = np.append(RECALLS[last > RECALLS], last) if last else np.zeros(1)
    precision = envelope(curve, recalls)
    bend = np.ones(len(recalls), bool)
    bend[1:-1] = (precision[1:-1] != precision[:-2]) | (precision[1:-1] != precision[2:])
    return recalls[bend], precision[bend]


def _unit_square(axes: Axes, labels: bool = True) -> None:
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.01)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1] if labels else [0, 0.5, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.tick_params(length=0)
    axes.grid(clip_on=False)
    axes.spines[:].set_visible(False)
    if labels:
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")


def _dot(axes: Axes, point: WorkingPoint, colour: str) -> list[Artist]:
    """The working point, where there is a hit."""
    if not point.f1 > 0:
        return []
    return axes.plot([point.recall], [point.precision], "o", color=colour, markersize=5, clip_on=False)


def _bar_texts(axes: Axes, positions: np.ndarray, values: Sequence[float]) -> None:
    gap = max(1.0, *np.nan_to_num(values)) / 80
    for y, value in zip(positions, values, strict=True):
        axes.text(np.nan_to_num(value) + gap, y, _points(value), va="center", fontsize=9, color=INK)


def _points(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.1f}"


def _unit(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _short(count: int) -> str:
    """A count in at most five characters."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * size:
            return f"{count / size:.0f}{letter}"
        if count >= size and size > 1_000:
            return f"{count / size:.1f}{letter}"
    return str(count)
