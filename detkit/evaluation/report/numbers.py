"""The numbers of the report: those of the metric with their meanings, and those of each class, also as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detkit.evaluation.grouping import count_by_class
from detkit.files import quote_formula

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet

#: Metric key -> its name on the page and its meaning.
MEANINGS = {
    "map": ("AP", "average precision: the mean over all classes and over the protocol's IoU thresholds"),
    "map_50": ("AP50", "AP at an IoU threshold of 0.5: are the objects found?"),
    "map_75": ("AP75", "AP at an IoU threshold of 0.75: do the boxes fit tightly?"),
    "map_small": ("AP small", "objects of less than 32 × 32 pixels"),
    "map_medium": ("AP medium", "objects of 32 × 32 to 96 × 96 pixels"),
    "map_large": ("AP large", "objects of more than 96 × 96 pixels"),
    "mar_small": ("AR small", "average recall of objects of less than 32 × 32 pixels"),
    "mar_medium": ("AR medium", "average recall of objects of 32 × 32 to 96 × 96 pixels"),
    "mar_large": ("AR large", "average recall of objects of more than 96 × 96 pixels"),
}
MAIN = ("map", "map_50", "map_75", "mar_100")


class Number(NamedTuple):
    """A number of the metric."""

    key: str  # its name in metrics.json
    name: str  # its name on the page
    value: float  # 0 to 1, NaN where it is not defined
    meaning: str  # one line
    is_main: bool  # whether the page shows it first and large


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The numbers of a class; NaN where they are not defined."""

    name: str
    ap: float  # by the protocol of the evaluation
    ap_50: float  # at IoU 0.5 with COCO's 101 recall points
    objects: int  # how many objects count
    ignored: int  # how many objects are ignored: difficult ones and crowds
    images: int  # how many images have an object that counts
    detections: int  # how many detections count, of any score
    threshold: float  # the score threshold with the best F1
    precision: float  # of the detections with at least that score, as the next two
    recall: float
    f1: float
    ap_low: float = math.nan  # the 95 % interval of `ap`
    ap_high: float = math.nan


def metric_numbers(metrics: Mapping[str, Any]) -> list[Number]:
    """The metric's numbers over all classes, the main ones first."""
    numbers = []
    for key, value in metrics.items():
        if re.fullmatch(r"map(_\w+)?|mar_\w+", key) and not key.endswith("_per_class"):
            name, meaning = describe(key)
            numbers.append(Number(key, name, to_float(value), meaning, key in MAIN))
    return sorted(numbers, key=lambda number: not number.is_main)


def describe(key: str) -> tuple[str, str]:
    """The name and the meaning of a number of the metric."""
    if key in MEANINGS:
        return MEANINGS[key]
    metric, _, what = key.partition("_")
    name = {"map": "AP", "mar": "AR"}[metric]
    if metric == "mar" and what.isdigit():
        best = "the best detection" if what == "1" else f"the {what} best detections"
        return f"AR@{what}", f"average recall: the share of objects found by {best} of an image and class"
    words = "average precision" if metric == "map" else "average recall"
    return f"{name} {what}", f"{words} of objects in the range of areas “{what}”"


def class_rows(metrics: Mapping[str, Any], evaluation_set: EvaluationSet, analysis: Analysis) -> list[ClassRow]:
    """A row for each class, in the order of the labels."""
    s, names = evaluation_set, analysis.class_names
    objects, ignored = s.labels[~s.ignored], s.labels[s.ignored]
    pairs = np.unique(np.stack((s.labels, s.object_images), axis=1)[~s.ignored], axis=0)
    detections = s.detected_labels[analysis.assignment.counted]
    counts = [count_by_class(labels, len(names)).tolist() for labels in (objects, ignored, pairs[:, 0], detections)]
    average = metrics.get("map_per_class") or {}
    intervals = (metrics.get("intervals") or {}).get("map_per_class") or {}
    unknown = (math.nan, math.nan)
    return [
        ClassRow(
            *(name, to_float(average.get(name)), part.ap, *numbers, *astuple(point)),
            *map(to_float, intervals.get(name, unknown)),
        )
        for name, part, point, *numbers in zip(names, analysis.by_class, analysis.working_points, *counts, strict=True)
    ]


def to_csv(rows: Sequence[ClassRow]) -> str:
    """The rows as CSV with a heading; "n/a", which pandas reads as missing, where a number is not defined.

    Class names go through `quote_formula`.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", *(field.name for field in fields(ClassRow)[1:])])
    for row in rows:
        name, *numbers = astuple(row)
        quoted = quote_formula(name).replace(
            "\r", " "
        )  # which csv does not quote, and a spreadsheet takes for a new row
        writer.writerow([quoted, *("n/a" if is_missing(number) else number for number in numbers)])
    return buffer.getvalue()


def to_float(value: Any) -> float:
    """A number, array or tensor of one number as a float; NaN for None and for anything else."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int) and abs(value) > 2**53:  # of a foreign file; it may be too large for a float
        return math.nan
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def is_missing(value: Any) -> bool:
    """Whether a number is not defined."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))
