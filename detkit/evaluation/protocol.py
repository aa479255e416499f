"""A protocol: everything that a number of mean average precision must be printed with, and its computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from detkit.errors import ConfigError
from detkit.evaluation import coco, voc
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.grouping import mean_of_known

#: Settings of each family of protocols, with their defaults.
COCO_SETTINGS: dict[str, Any] = {
    "iou_thresholds": coco.IOU_THRESHOLDS,
    "recall_thresholds": coco.RECALL_THRESHOLDS,
    "max_detections": coco.MAX_DETECTIONS,
    "area_ranges": coco.AREA_RANGES,
}
VOC_SETTINGS: dict[str, Any] = {"iou_thresholds": (0.5,), "hit_rule": ">"}
PROTOCOLS = ("coco", "voc07", "voc10")


@dataclass(frozen=True)
class Protocol:
    """COCO's protocol or one of VOC's, with COCO's or VOC's own settings where none are given.

    Attributes:
        name: "coco" (COCOeval), "voc07" (VOC2007: 11 points) or "voc10" (VOC2010: area under the curve).
        iou_thresholds: least IoU of a hit; the AP is the mean over them. COCO's ten, or VOC's 0.5.
        recall_thresholds: coco only: recalls at which the precision is averaged; COCO's 101.
        max_detections: coco only: numbers of best detections of an image and class that recall is given for; the
            largest is what AP counts. 1, 10 and 100.
        area_ranges: coco only: least and largest area of what counts, in square pixels of the original image. The
            first one is of the plain numbers. all, small, medium and large.
        hit_rule: VOC only: whether a hit's IoU is above its threshold (">", the Python port) or may be equal
            (">=", the MATLAB devkit).
        difficult: "ignore" makes difficult objects neither hit nor miss, "count" takes them for ordinary ones.

    Raises:
        ConfigError: an unknown name, a setting that the protocol does not have, or one out of its range.
    """

    name: str = "coco"
    iou_thresholds: Sequence[float] | None = None
    recall_thresholds: Sequence[float] | None = None
    max_detections: Sequence[int] | None = None
    area_ranges: Mapping[str, Sequence[float]] | None = field(default=None, hash=False)
    hit_rule: str | None = None
    difficult: str = "ignore"

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ConfigError(f"unknown evaluation protocol {self.name!r}: use one of {', '.join(PROTOCOLS)}")
        is_coco = self.name == "coco"
        defaults, others = (COCO_SETTINGS, VOC_SETTINGS) if is_coco else (VOC_SETTINGS, COCO_SETTINGS)
        for setting in others:
            if setting not in defaults and getattr(self, setting) is not None:
                whose = "the protocols voc07 and voc10" if is_coco else "the protocol coco"
                raise ConfigError(f"{setting} is for {whose}, not for {self.name}")
        if self.difficult not in ("ignore", "count"):
            raise ConfigError(f"difficult must be 'ignore' or 'count', not {self.difficult!r}")
        for setting, default in defaults.items():
            value = getattr(self, setting)
            object.__setattr__(self, setting, _checked(setting, default if value is None else value))

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """The protocol in words: what a number must be printed with."""
        iou = _in_words(self.iou_thresholds)
        ignored = "crowd and difficult ignored" if self.difficult == "ignore" else "crowd ignored, difficult counted"
        if self.name != "coco":
            name, curve = ("VOC07", "11 points") if self.name == "voc07" else ("VOC10", "area under the curve")
            return f"{name} (AP at IoU {self.hit_rule} {iou}, {curve}; {ignored})"
        usual = self.recall_thresholds == coco.RECALL_THRESHOLDS
        recalls = f"{len(self.recall_thresholds)} points" if usual else f"recalls {_in_words(self.recall_thresholds)}"
        most = self.max_detections[-1]
        first = next(iter(self.area_ranges.values()))
        areas = "" if first == coco.AREA_RANGES["all"] else f"areas from {first[0]:g} to {first[1]:g}, "
        return (
            f"COCO (AP at IoU {iou}, {recalls}, {areas}at most {most} detection{'s' if most > 1 else ''} an image and "
            f"class; {ignored})"
        )

    def seen(self, evaluation_set: EvaluationSet) -> EvaluationSet:
        """The set as the protocol sees it: `difficult` is what is ignored and no crowd, areas out of range included."""
        s = evaluation_set
        difficult = s.difficult if self.difficult == "ignore" else np.zeros_like(s.difficult)
        if self.name == "coco":
            least, most = next(iter(self.area_ranges.values()))
            difficult = difficult | (s.area < least) | (s.area > most)
        return replace(s, difficult=difficult)

    def evaluate(self, evaluation_set: EvaluationSet, num_classes: int) -> dict[str, Any]:
        """The numbers of the classes 1..num_classes, in 0..1, NaN where there is nothing to count.

        Under torchmetrics' names, float, and float64 (K,) for each class:
        coco: map, map_50 and map_75 (where these thresholds are among the IoUs), map_NAME of each further range of
        areas, mar_N of each number of detections, mar_NAME, map_per_class, mar_N_per_class of the largest N.
        voc07, voc10: map, map_per_class, and map_50 and map_75 likewise.

        And `num_over_limit`, int: detections beyond the largest of max_detections, which were not counted.
        """
        evaluation_set = self.seen(evaluation_set)
        if self.name == "coco":
            return self._evaluate_coco(evaluation_set, num_classes)
        average = voc.evaluate(
            evaluation_set,
            num_classes,
            self.iou_thresholds,
            eleven_points=self.name == "voc07",
            strict=self.hit_rule == ">",
        )
        return self.averages(average) | {"num_over_limit": 0}

    def averages(self, values: np.ndarray) -> dict[str, Any]:
        """map, map_50, map_75 and map_per_class of AP (T, K), or of precisions at R recalls (T, R, K)."""
        at_thresholds = {f"map_{p}": mean_of_known(values[row]) for p, row in self._thresholds().items()}
        return {"map": mean_of_known(values), **at_thresholds, "map_per_class": _means(values)}

    def _evaluate_coco(self, evaluation_set: EvaluationSet, num_classes: int) -> dict[str, Any]:
        precision, recall, over_limit = coco.evaluate(
            evaluation_set,
            num_classes,
            self.iou_thresholds,
            self.recall_thresholds,
            self.max_detections,
            self.area_ranges,
        )
        further = list(enumerate(self.area_ranges))[1:]
        return {
            **self.averages(precision[..., 0]),
            **{f"map_{name}": mean_of_known(precision[..., a]) for a, name in further},
            **{f"mar_{limit}": mean_of_known(recall[..., 0, m]) for m, limit in enumerate(self.max_detections)},
            **{f"mar_{name}": mean_of_known(recall[..., a, -1]) for a, name in further},
            f"mar_{self.max_detections[-1]}_per_class": _means(recall[..., 0, -1]),
            "num_over_limit": over_limit,
        }

    def _thresholds(self) -> dict[int, int]:
        """Which of the IoU thresholds are 0.50 and 0.75, by the percentage."""
        near = {p: np.flatnonzero(np.isclose(self.iou_thresholds, p / 100, rtol=0, atol=1e-9)) for p in (50, 75)}
        return {percent: int(rows[0]) for percent, rows in near.items() if len(rows)}


def _means(values: np.ndarray) -> np.ndarray:
    """The mean for each class, the last axis; a class has all of its values or, all NaN, none."""
    return values.mean(axis=tuple(range(values.ndim - 1)))


def _checked(setting: str, value: Any) -> Any:
    """The value of a setting as plain numbers, sorted; raises ConfigError if it is out of its range."""
    if setting == "area_ranges":
        return _ranges(value)
    if setting == "hit_rule":
        if value not in (">", ">="):
            raise ConfigError(f"hit_rule must be '>' or '>=', not {value!r}")
        return value
    if setting != "max_detections":
        return _sorted_numbers(setting, value, 0.0, 1.0)
    limits = _sorted_numbers(setting, value, 1, 2**31 - 1)
    if any(limit != int(limit) for limit in limits):
        raise ConfigError(f"max_detections must be whole numbers, not {list(limits)}")
    return tuple(int(limit) for limit in limits)


def _sorted_numbers(setting: str, values: Any, least: float, most: float) -> tuple[float, ...]:
    try:
        numbers = tuple(sorted({float(value) for value in values}))
    except (TypeError, ValueError):
        raise ConfigError(f"{setting} must be a list of numbers, not {values!r}") from None
    if not numbers or not all(least <= number <= most for number in numbers):
        bounds = f"from {least:g} to {most:g}" if most <= 1 else f"of at least {least:g}"
        raise ConfigError(f"{setting} must be one or more numbers {bounds}, not {list(numbers)}")
    return numbers


def _ranges(value: Any) -> dict[str, tuple[float, float]]:
    try:
        ranges = {str(name): (float(least), float(most)) for name, (least, most) in dict(value).items()}
    except (TypeError, ValueError):
        ranges = {}
    if not ranges or not all(least <= most for least, most in ranges.values()):
        raise ConfigError(f"area_ranges must be names with a least and a largest area in square pixels, not {value}")
    if taken := [name for name in ranges if name.isdecimal() or name == "per_class"]:
        raise ConfigError(f"area_ranges: {taken[0]!r} is no name for a range: other numbers are called so")
    return ranges


def _in_words(thresholds: Sequence[float]) -> str:
    """0.50:0.95 for COCO's ten (and others .05 apart), else 0.5, 0.6, 0.825; a single one has two places or more."""
    steps = np.diff(thresholds)
    if len(steps) > 1 and np.allclose(steps, 0.05, rtol=0, atol=1e-9):
        return f"{thresholds[0]:.2f}:{thresholds[-1]:.2f}"
    return ", ".join(f"{value:.2f}" if round(value, 2) == value else f"{value:g}" for value in thresholds)
