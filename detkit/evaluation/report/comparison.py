"""An evaluation compared with an earlier one: which numbers are better or worse, and whether they are comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from detkit.evaluation.report.numbers import metric_numbers, to_float

MUST_AGREE = {
    "protocol": "The protocols differ",
    "data": "The data sets differ",
    "split": "The splits differ",
    "num_images": "The numbers of images differ",
}


class Difference(NamedTuple):
    """A number in both evaluations, 0..1; NaN where one is missing. `lower_is_better` for AP that errors cost."""

    name: str
    before: float
    now: float
    lower_is_better: bool = False

    @property
    def change(self) -> float:
        return self.now - self.before

    @property
    def better(self) -> bool | None:
        """None where the change is too small to show in three digits."""
        if math.isnan(self.change) or abs(self.change) < 5e-4:
            return None
        return (self.change < 0) == self.lower_is_better


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between an evaluation and its baseline.

    Attributes:
        source: the checkpoint or the file of detections of the baseline.
        warnings: why the numbers may not be comparable.
        numbers: the metric's numbers and, where the baseline has them, the AP that each kind of error costs.
        classes: AP of each class that both have, largest change first.
        only_now, only_before: classes that only one of the two has.
    """

    source: str
    warnings: list[str]
    numbers: list[Difference]
    classes: list[Difference]
    only_now: list[str]
    only_before: list[str]


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two `metrics.json`; `before` may have another version's keys, or be any JSON object."""
    numbers = [Difference(n.name, to_float(before.get(n.key)), n.value) for n in metric_numbers(now)]
    numbers += [
        Difference(f"AP50 lost: {name}", to_float(_analysis(before, *path)), to_float(_analysis(now, *path)), True)
        for name, path in _error_numbers(now).items()
    ]
    classes_now, classes_before = _mapping(now.get("map_per_class")), _mapping(before.get("map_per_class"))
    both = [
        Difference(name, to_float(classes_before[name]), to_float(ap))
        for name, ap in classes_now.items()
        if name in classes_before
    ]
    both.sort(key=lambda row: -1.0 if math.isnan(row.change) else abs(row.change), reverse=True)
    return Comparison(
        source=str(before.get("checkpoint") or before.get("detections") or "n/a"),
        warnings=_warnings(now, before),
        numbers=[row for row in numbers if not math.isnan(row.before)],
        classes=both,
        only_now=[str(name) for name in classes_now if name not in classes_before],
        only_before=[str(name) for name in classes_before if name not in classes_now],
    )


def _warnings(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    warnings = [
        f"{words}: {_quote(before.get(key))} in the baseline, {_quote(now.get(key))} now."
        for key, words in MUST_AGREE.items()
        if before.get(key) != now.get(key)
    ]
    objects, objects_before = _objects(now), _objects(before)
    if None not in (objects, objects_before) and objects != objects_before:
        warnings.append(f"The numbers of objects differ: {objects_before} in the baseline, {objects} now.")
    return warnings


def _quote(value: Any) -> str:
    return "unknown" if value is None else f"“{value}”" if isinstance(value, str) else str(value)


def _objects(metrics: Mapping[str, Any]) -> int | None:
    bins = _analysis(metrics, "by_class")
    try:
        return sum(int(row["objects"]) for row in bins)
    except (TypeError, KeyError, ValueError):
        return None


def _error_numbers(now: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    kinds = {str(kind): ("error_ap", kind) for kind in _mapping(_analysis(now, "error_ap"))}
    return {**kinds, "all false positives": ("false_positive_ap",), "all missed objects": ("false_negative_ap",)}


def _analysis(metrics: Mapping[str, Any], *path: str) -> Any:
    value: Any = metrics.get("analysis")
    for name in path:
        value = _mapping(value).get(name)
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
