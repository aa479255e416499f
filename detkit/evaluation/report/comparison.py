"""This evaluation against an earlier one: what became better, what became worse, and whether they can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .headline import headline
from .per_class import number

MUST_AGREE = {
    "protocol": "The protocols differ",
    "data": "The data sets differ",
    "split": "The splits differ",
    "num_images": "The numbers of images differ",
}


class Difference(NamedTuple):
    """A number before and now, in 0..1; NaN where one of them is missing. `lower_is_better`: of an AP that is lost."""

    name: str
    before: float
    now: float
    lower_is_better: bool = False

    @property
    def change(self) -> float:
        return self.now - self.before

    @property
    def better(self) -> bool | None:
        """None where nothing that three digits show has changed."""
        if math.isnan(self.change) or abs(self.change) < 5e-4:
            return None
        return (self.change < 0) == self.lower_is_better


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences.

    Attributes:
        source: the checkpoint or the file of detections that the baseline is of.
        warnings: why the numbers may not be comparable.
        numbers: the metric's numbers, and what is lost to each kind of error where the baseline tells.
        classes: AP of each class that both have, the largest change first.
        only_now, only_before: classes that only one of the two has.
    """

    source: str
    warnings: list[str]
    numbers: list[Difference]
    classes: list[Difference]
    only_now: list[str]
    only_before: list[str]


def compare(now: Mapping[str, Any], before: Mapping[str, Any]) -> Comparison:
    """Compares two contents of `metrics.json`; `before` may be of another version, or of somewhere else."""
    numbers = [Difference(n.name, number(before.get(n.key)), n.value) for n in headline(now)]
    numbers += [
        Difference(f"AP50 lost: {name}", number(_analysis(before, *path)), number(_analysis(now, *path)), True)
        for name, path in _losses(now).items()
    ]
    classes_now, classes_before = _mapping(now.get("map_per_class")), _mapping(before.get("map_per_class"))
    both = [
        Difference(k, number(classes_before[k]), number(classes_now[k])) for k in classes_now if k in classes_before
    ]
    both.sort(key=lambda each: -1.0 if math.isnan(each.change) else abs(each.change), reverse=True)
    return Comparison(
        source=str(before.get("checkpoint") or before.get("detections") or "n/a"),
        warnings=_warnings(now, before),
        numbers=[each for each in numbers if not math.isnan(each.before)],
        classes=both,
        only_now=[str(name) for name in classes_now if name not in classes_before],
        only_before=[str(name) for name in classes_before if name not in classes_now],
    )


def _warnings(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    found = [
        f"{words}: {_said(before, key)} in the baseline, {_said(now, key)} here."
        for key, words in MUST_AGREE.items()
        if before.get(key) != now.get(key)
    ]
    objects, objects_before = _objects(now), _objects(before)
    if None not in (objects, objects_before) and objects != objects_before:
        found.append(f"The numbers of objects differ: {objects_before} in the baseline, {objects} here.")
    return found


def _said(metrics: Mapping[str, Any], key: str) -> str:
    value = metrics.get(key)
    return "not said" if value is None else f"“{value}”" if isinstance(value, str) else str(value)


def _objects(metrics: Mapping[str, Any]) -> int | None:
    bins = _analysis(metrics, "by_class")
    try:
        return sum(int(each["objects"]) for each in bins)
    except (TypeError, KeyError, ValueError):
        return None


def _losses(now: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    kinds = {str(kind): ("error_ap", kind) for kind in _mapping(_analysis(now, "error_ap"))}
    return {**kinds, "all false positives": ("false_positive_ap",), "all not found": ("false_negative_ap",)}


def _analysis(metrics: Mapping[str, Any], *path: str) -> Any:
    found: Any = metrics.get("analysis")
    for name in path:
        found = _mapping(found).get(name)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
