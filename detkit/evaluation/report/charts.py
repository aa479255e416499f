"""The geometry of the report's charts, which `templates/charts.html` draws as SVG in the colours of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detkit.evaluation.curves import ClassCurve, WorkingPoint

RECALLS = np.linspace(0.0, 1.0, 101)
OVERVIEW = (420, 300)  # width and height of the axes, in pixels
SMALL = (160, 100)
FEW_CLASSES = 8  # up to so many have a colour each
MAX_CELLS = 21  # rows of a confusion matrix up to which its counts are written
SHADES = 20  # of a confusion matrix


@dataclass(frozen=True, slots=True)
class Curve:
    """A precision-recall curve to draw."""

    name: str  # of the class
    points: str  # "x,y x,y ..." in pixels from the upper left corner of the axes
    dot: tuple[float, float] | None  # the score threshold with the best F1; None where no detection is right


@dataclass(frozen=True, slots=True)
class Overview:
    """The curves of all classes that have objects, and the points of their mean; "" for fewer than two classes."""

    curves: list[Curve]
    mean: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix to draw; the unit is a cell."""

    names: list[str]  # of the rows and columns
    shades: dict[float, str]  # opacity (0 to 1) -> the path of all cells whose share of their row has it
    counts: list[tuple[int, int, str, bool]]  # column, row, count, whether the cell is dark; where there is room


def draw_curve(curve: ClassCurve, point: WorkingPoint, name: str, size: tuple[int, int] = SMALL) -> Curve:
    """The curve of a class: at most 102 points, as far as its recall reaches."""
    last = curve.last_recall if curve.num_objects else 0.0
    recalls = np.append(RECALLS[last > RECALLS], last) if last else np.zeros(1)
    precision = curve.best_precision(recalls)
    bend = np.ones(len(recalls), bool)  # points on a horizontal line are left out
    bend[1:-1] = (precision[1:-1] != precision[:-2]) | (precision[1:-1] != precision[2:])
    width, height = size
    dot = (round(width * point.recall, 1), round(height * (1 - point.precision), 1)) if point.f1 > 0 else None
    return Curve(name, _points(recalls[bend], precision[bend], size), dot)


def draw_overview(curves: Sequence[ClassCurve], points: Sequence[WorkingPoint], names: Sequence[str]) -> Overview:
    """The curves of all classes with objects, and their mean."""
    shown = [row for row in zip(curves, points, names, strict=True) if row[0].num_objects]
    mean = ""
    if len(shown) > 1:
        mean = _points(RECALLS, np.mean([curve.best_precision(RECALLS) for curve, _, _ in shown], axis=0), OVERVIEW)
    return Overview([draw_curve(*row, OVERVIEW) for row in shown], mean)


def draw_matrix(matrix: np.ndarray, names: Sequence[str]) -> Matrix:
    """A confusion matrix, shaded by the share of each row; counts are written where there is room.

    Args:
        matrix: (n, n) counts, rows ground truth, columns detected.
        names: n names for both.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shades: dict[float, str] = {}
    counts = []
    for row, column in np.argwhere(matrix).tolist():
        level = max(1, round(float(share[row, column]) * SHADES)) / SHADES
        shades[level] = shades.get(level, "") + f"M{column} {row}h1v1h-1z"
        if len(names) <= MAX_CELLS:
            counts.append((column, row, short_count(int(matrix[row, column])), level > 0.55))
    return Matrix([plain_label(name, 16) for name in names], shades, counts)


def plain_label(text: str, longest: int = 24) -> str:
    """A name on one line: control characters replaced, and cut where it is too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def short_count(count: int) -> str:
    """A count in at most five characters."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * size:
            return f"{count / size:.0f}{letter}"
        if count >= size and size > 1_000:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _points(recalls: np.ndarray, precisions: np.ndarray, size: tuple[int, int]) -> str:
    x, y = size[0] * recalls, size[1] * (1 - precisions)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)).replace(".0", "")
