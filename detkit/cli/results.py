"""What a validation or a test found, as a table to read, and what an earlier one found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detkit.errors import DataError
from detkit.files import plain

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


def print_metrics(metrics: Mapping[str, Any], title: str, console: Console | None = None) -> None:
    """Prints the protocol, the AP numbers (or a classifier's accuracy) and those of each class.

    Args:
        metrics: as `Detector.last_metrics` keeps them: numbers by torchmetrics' names (in 0..1), `map_per_class` (or
            `accuracy_per_class`) by class name, `num_over_limit` detections beyond `max_detections`, and `protocol`.
        title: what was evaluated.
        console: where to; standard output by default.
    """
    console = console or Console()
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in plain(metrics).items():
        if key in NAMES:
            table.add_row(NAMES[key], _number(value))
        elif isinstance(value, float) and key.startswith(("map_", "mar_")):
            table.add_row(_name(key), _number(value))
    for key, short in (("map_per_class", "AP"), ("accuracy_per_class", "accuracy")):
        per_class = plain(metrics.get(key) or {})
        if per_class:
            table.add_section()
        for name, value in per_class.items():
            table.add_row(escape(f"{short} {name}"), _number(value))
    console.print(f"\n{escape(title)}\n{escape(str(metrics.get('protocol', '')))}", highlight=False)
    console.print(table)
    if ablation := metrics.get("ablation"):
        from detkit.detectors.rcnn.ablation import ablation_table  # which needs torch; `detkit evaluate` does not

        console.print(ablation_table(ablation), highlight=False)
    if over_limit := metrics.get("num_over_limit"):
        best = f"the {metrics['max_detections']:,} best of their image and class"
        console.print(f"not counted: {over_limit:,} detections beyond {best}", highlight=False)


def print_baseline(metrics: Mapping[str, Any], baseline: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints how the AP numbers changed against a baseline, or why they cannot be compared."""
    from detkit.evaluation.report.comparison import compare

    console = console or Console()
    comparison = compare(metrics, baseline)
    for warning in comparison.warnings:
        console.print(f"baseline: not comparable? {escape(warning)}", highlight=False)
    changes = [
        f"{each.name} {_number(each.before)} -> {_number(each.now)} ({100 * each.change:+.1f})"
        for each in comparison.numbers
        if each.name.startswith("AP") and "lost" not in each.name and " " not in each.name
    ]
    told = ", ".join(changes) or "no numbers in common"
    console.print(f"baseline: {told}; class by class in the report", highlight=False)


def read_baseline(path: str) -> dict[str, Any]:
    """The content of an earlier `metrics.json` to compare with; a report's or a run's folder will do.

    Raises:
        DataError: missing, not JSON, or nothing that a report has written.
    """
    places = [Path(path), Path(path) / "metrics.json", Path(path) / "report" / "metrics.json"]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        raise DataError(f"--baseline {path}: there is no such file, nor a report's or a run's folder of that name")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--baseline {path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or "map" not in content or "protocol" not in content:
        raise DataError(f"--baseline {path}: not the metrics.json of a report: it has no map or no protocol")
    return content


def instead(path: Path, option: str) -> str:
    """What to tell, once a file has been written, of the one that was in its place; asked for before, "" if none is.

    Args:
        path: the file.
        option: the one by which another folder is named.
    """
    return f" (instead of an earlier one; {option} FOLDER keeps both)" if path.is_file() else ""


def _name(key: str) -> str:
    """mar_5 is AR, 5 detections; map_tiny is AP tiny."""
    kind, rest = ("AP" if key.startswith("map_") else "AR"), key[4:]
    return f"{kind}, {rest} detections" if rest.isdecimal() and kind == "AR" else f"{kind} {rest}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def print_differences(rows: list[tuple[str, Any, Any, str]], console: Console | None = None) -> None:
    """Prints where the checkpoint and the user's words differ.

    Args:
        rows: (option, checkpoint's value, the other value, which wins).
        console: where to; standard output by default.
    """
    console = console or Console()
    console.print("The checkpoint and what was asked for differ:", highlight=False)
    table = Table()
    for column in ("option", "checkpoint", "asked for", "wins"):
        table.add_column(column)
    for option, theirs, ours, winner in rows:
        table.add_row(escape(f"model.{option}"), escape(str(theirs)), escape(str(ours)), winner)
    console.print(table)
    if any(row[3] == "checkpoint" for row in rows):
        console.print("Given on the command line (--model.NAME VALUE), an option wins.", highlight=False)
