"""An evaluation compared with an earlier one: which numbers are better or worse, and whether they are comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    interval: Sequence[float] | None = None  # [low, high] of the change; None where it is not known

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
    """The differences between an evaluation and its baseline."""

    source: str  # the checkpoint or the file of detections of the baseline
    warnings: list[str]  # why the numbers may not be comparable
    numbers: list[Difference]  # the metric's and, where the baseline has them, the AP that each kind of error costs
    classes: list[Difference]  # AP of each class that both have, largest change first
    only_now: list[str]  # classes that only one of the two has
    only_before: list[str]
    unpaired: str = ""  # why there are no intervals; "" also where none were asked for

    @property
    def paired(self) -> bool:
        """Whether there are intervals."""
        return any(row.interval for row in (*self.numbers, *self.classes))


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two `metrics.json`; `before` may have another version's keys, or be any JSON object."""
    intervals = _mapping(now.get("differences"))
    numbers = [
        Difference(n.name, to_float(before.get(n.key)), n.value, interval=_known(intervals.get(n.key)))
        for n in metric_numbers(now)
    ]
    costs_before = _costs(before)
    numbers += [
        Difference(f"AP50 lost: {name}", to_float(costs_before.get(name)), to_float(ap), lower_is_better=True)
        for name, ap in _costs(now).items()
    ]
    classes_now, classes_before = _mapping(now.get("map_per_class")), _mapping(before.get("map_per_class"))
    class_intervals = _mapping(intervals.get("map_per_class"))
    both = [
        Difference(name, to_float(classes_before[name]), to_float(ap), interval=_known(class_intervals.get(name)))
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
        unpaired=str(intervals.get("unpaired", "")),
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
    try:
        return sum(int(row["objects"]) for row in _mapping(metrics.get("analysis"))["by_class"])
    except (TypeError, KeyError, ValueError):
        return None


def _costs(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The AP that errors cost, as far as the metrics have it, by kind."""
    analysis = _mapping(metrics.get("analysis"))
    totals = {"all false positives": "false_positive_ap", "all missed objects": "false_negative_ap"}
    return {**_mapping(analysis.get("error_ap")), **{name: analysis.get(key) for name, key in totals.items()}}


def _known(interval: Sequence[float | None] | None) -> Sequence[float] | None:
    values = [to_float(value) for value in interval or ()]
    return None if interval is None or any(map(math.isnan, values)) else values


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
