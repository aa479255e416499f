"""The numbers of each class: rows of the page's table and of `per_class.csv`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet


@dataclass(frozen=True, slots=True)
class ClassRow:
    """What is known of a class; NaN where there is nothing to count.

    Attributes:
        name: the class.
        ap: by the protocol of the evaluation.
        ap_50: at IoU 0.5, by COCO's 101 points.
        objects: how many there are to find.
        ignored: difficult objects and crowds, which need not be found.
        images: how many images have an object of it to find.
        detections: those that count, of any score.
        threshold: the score from which on detections are best kept, by F1.
        precision, recall, f1: there.
    """

    name: str
    ap: float
    ap_50: float
    objects: int
    ignored: int
    images: int
    detections: int
    threshold: float
    precision: float
    recall: float
    f1: float


def class_rows(metrics: Mapping[str, Any], evaluation_set: EvaluationSet, analysis: Analysis) -> list[ClassRow]:
    """A row for each class, in the order of the labels."""
    s, names = evaluation_set, analysis.class_names
    count = len(names)
    objects = np.bincount(s.labels[~s.ignored], minlength=count + 1)
    ignored = np.bincount(s.labels[s.ignored], minlength=count + 1)
    pairs = np.unique(np.stack((s.labels, s.object_images), axis=1)[~s.ignored], axis=0)
    images = np.bincount(pairs[:, 0], minlength=count + 1)
    detections = np.bincount(s.detected_labels[analysis.assignment.counted], minlength=count + 1)
    average = metrics.get("map_per_class") or {}
    return [
        ClassRow(
            name=name,
            ap=number(average.get(name)),
            ap_50=number(analysis.by_class[k].ap),
            objects=int(objects[k + 1]),
            ignored=int(ignored[k + 1]),
            images=int(images[k + 1]),
            detections=int(detections[k + 1]),
            threshold=point.score,
            precision=point.precision,
            recall=point.recall,
            f1=point.f1,
        )
        for k, (name, point) in enumerate(zip(names, analysis.working_points, strict=True))
    ]


def to_csv(rows: Sequence[ClassRow]) -> str:
    """The rows as CSV with a heading; "n/a", which pandas reads as missing, where there is nothing to count."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["class", *(field.name for field in fields(ClassRow)[1:])])
    for row in rows:
        writer.writerow(["n/a" if is_missing(value) else value for value in asdict(row).values()])
    return buffer.getvalue()


def number(value: Any) -> float:
    """A metric as a float; NaN for None and for what is no number."""
    if hasattr(value, "item"):
        value = value.item()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def is_missing(value: Any) -> bool:
    """Whether there was nothing to count."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))
