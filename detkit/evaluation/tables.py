"""Metrics as text for a terminal: the table of a validation or test, the ablation, the change against a baseline."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from detkit.data.coco_files import decode
from detkit.errors import DataError
from detkit.files import to_json, versions

if TYPE_CHECKING:
    from detkit.evaluation.report.comparison import Difference

NAMES = {
    "accuracy": "accuracy",
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP small",
    "map_medium": "AP medium",
    "map_large": "AP large",
    "mar_1": "AR, 1 detection",
    "mar_10": "AR, 10 detections",
    "mar_100": "AR, 100 detections",
    "mar_small": "AR small",
    "mar_medium": "AR medium",
    "mar_large": "AR large",
}


def render(*parts: RenderableType) -> str:
    """Render tables and lines of rich as text, as wide as the terminal, without a newline at the end."""
    out = io.StringIO()
    console = Console(file=out, force_jupyter=False)
    for part in parts:
        console.print(part, highlight=False)
    return out.getvalue().rstrip("\n")


def metrics_text(metrics: Mapping[str, Any], title: str) -> str:
    """The protocol, the AP numbers (or a classifier's accuracy) and those of each class.

    Args:
        metrics: numbers by torchmetrics' names (in 0..1), `map_per_class` (or `accuracy_per_class`) by class name,
            `num_over_limit` detections beyond `max_detections`, and `protocol`; see `Detector.last_metrics`. And
            `intervals`, where there are, with their `note`.
        title: what was evaluated.
    """
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    intervals = to_json(metrics.get("intervals") or {})
    if intervals:
        table.add_column("95 % interval")

    def add(name: str, value: float | None, interval: Sequence[float | None] | None) -> None:
        table.add_row(escape(name), _number(value), *([_interval(interval)] if intervals else []))

    for key, value in to_json(metrics).items():
        if key in NAMES:
            add(NAMES[key], value, intervals.get(key))
        elif isinstance(value, float) and key.startswith(("map_", "mar_")):
            add(_name(key), value, intervals.get(key))
    for key, short in (("map_per_class", "AP"), ("accuracy_per_class", "accuracy")):
        per_class = to_json(metrics.get(key) or {})
        if per_class:
            table.add_section()
        for name, value in per_class.items():
            add(f"{short} {name}", value, (intervals.get("map_per_class") or {}).get(name))
    parts: list[RenderableType] = [f"\n{escape(title)}\n{escape(str(metrics.get('protocol', '')))}", table]
    if ablation := metrics.get("ablation"):
        parts.append(ablation_table(ablation))
    if note := intervals.get("note"):
        parts.append(f"95 % intervals: {note}")
    if over_limit := metrics.get("num_over_limit"):
        best = f"the {metrics['max_detections']:,} best of their image and class"
        parts.append(f"not counted: {over_limit:,} detections beyond {best}")
    return render(*parts)


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The variants of an R-CNN: AP, AP50, and what SVMs and box regressors add to AP.

    Args:
        rows: one for each variant: `variant`, `map`, `map_50`, `svm_gain`, `box_gain` (NaN or None where there is no
            number) and `used`, whether the model detects in this way.
    """
    lines = [f"{'variant':<22}{'AP':>8}{'AP50':>8}{'SVM gain':>10}{'box gain':>10}"]
    for row in rows:
        name = f"{row['variant']} (used)" if row["used"] else row["variant"]
        scores = "".join(f"{_number(row[key]):>8}" for key in ("map", "map_50"))
        gains = "".join(f"{_number(row[key], '+.3f'):>10}" for key in ("svm_gain", "box_gain"))
        lines.append(f"{name:<22}{scores}{gains}")
    return "\n".join(lines)


def baseline_text(metrics: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """How the AP numbers changed against a baseline, or why they cannot be compared.

    Args:
        metrics: see `metrics_text`.
        baseline: as `read_baseline` returns it.
    """
    from detkit.evaluation.report.comparison import compare

    comparison = compare(metrics, baseline)
    lines = [f"baseline: not comparable? {warning}" for warning in comparison.warnings]
    changes = [
        f"{each.name} {_number(each.before)} -> {_number(each.now)} ({100 * each.change:+.1f}{_of_change(each)})"
        for each in comparison.numbers
        if each.name.startswith("AP") and "lost" not in each.name and " " not in each.name
    ]
    if comparison.unpaired:
        lines.append(f"baseline: no interval of the difference: {comparison.unpaired}")
    lines.append(f"baseline: {', '.join(changes) or 'no numbers in common'}; class by class in the report")
    return "\n".join(lines)


def find_baseline(path: str | Path) -> Path:
    """The file that `read_baseline` reads; DataError where there is none."""
    folders = [Path(path), Path(path) / "report", *(version / "report" for version in versions(path))]
    candidates = [Path(path), *(folder / "metrics.json" for folder in folders)]
    file = next((each for each in candidates if each.is_file()), None)
    if file is None:
        raise DataError(f"{path}: there is no such file, nor a report's or a run's folder of that name")
    return file


def read_baseline(path: str | Path) -> dict[str, Any]:
    """Read the `metrics.json` of an earlier report.

    Args:
        path: the file, or the folder of a report, a run or one of its versions; of a run the newest that has a report.

    Raises:
        DataError: missing, not JSON, or not written by a report.
    """
    try:
        content = decode(find_baseline(path), dict[str, Any], "the metrics of a report")
    except DataError as error:
        raise DataError(f"baseline {error}") from None
    if "map" not in content or "protocol" not in content:
        raise DataError(f"baseline {path}: not the metrics.json of a report: it has no map or no protocol")
    return content


def _name(key: str) -> str:
    """The label of a metric: mar_5 is AR, 5 detections; map_tiny is AP tiny."""
    short = "AP" if key.startswith("map_") else "AR"
    rest = key[4:]
    return f"{short}, {rest} detections" if rest.isdecimal() and short == "AR" else f"{short} {rest}"


def _interval(pair: Sequence[float | None] | None) -> str:
    return "" if pair is None or pair[0] is None else escape(f"[{pair[0]:.3f}, {pair[1]:.3f}]")


def _of_change(each: Difference) -> str:
    return "" if each.interval is None else " [{:+.1f}, {:+.1f}]".format(*(100 * value for value in each.interval))


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None or math.isnan(value) else format(value, form)
