"""What each number of a metric is called, and what it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .per_class import number

MEANINGS = {
    "map": ("AP", "average precision: the mean over all classes and over the protocol's IoU thresholds"),
    "map_50": ("AP50", "a detection is right from an IoU of 0.5: is the object found at all?"),
    "map_75": ("AP75", "a detection is right from an IoU of 0.75 only: does the box fit tightly?"),
    "map_small": ("AP small", "objects of less than 32 × 32 pixels"),
    "map_medium": ("AP medium", "objects of 32 × 32 to 96 × 96 pixels"),
    "map_large": ("AP large", "objects of more than 96 × 96 pixels"),
    "mar_small": ("AR small", "average recall of objects of less than 32 × 32 pixels"),
    "mar_medium": ("AR medium", "average recall of objects of 32 × 32 to 96 × 96 pixels"),
    "mar_large": ("AR large", "average recall of objects of more than 96 × 96 pixels"),
}
FOREMOST = ("map", "map_50", "map_75", "mar_100")


class Number(NamedTuple):
    """A number of the metric.

    Attributes:
        key: its name in metrics.json.
        name: its name for people.
        value: in 0..1, NaN where there is nothing to count.
        meaning: one line.
        foremost: whether it is one of the few to look at first.
    """

    key: str
    name: str
    value: float
    meaning: str
    foremost: bool


def headline(metrics: Mapping[str, Any]) -> list[Number]:
    """The metric's numbers, all those that are not of single classes, the foremost first."""
    found = []
    for key, value in metrics.items():
        if re.fullmatch(r"map(_\w+)?|mar_\w+", key) and not key.endswith("_per_class"):
            name, meaning = describe(key)
            found.append(Number(key, name, number(value), meaning, key in FOREMOST))
    return sorted(found, key=lambda each: not each.foremost)


def describe(key: str) -> tuple[str, str]:
    """A number's name and meaning."""
    if key in MEANINGS:
        return MEANINGS[key]
    kind, _, what = key.partition("_")
    name = {"map": "AP", "mar": "AR"}[kind]
    if kind == "mar" and what.isdigit():
        most = "the best detection" if what == "1" else f"the {what} best detections"
        return f"AR@{what}", f"average recall: the share of objects found by {most} of an image and class"
    words = "average precision" if kind == "map" else "average recall"
    return f"{name} {what}", f"{words} of objects in the range of areas “{what}”"
