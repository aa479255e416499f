"""What a validation or a test found: a table to read, and `metrics.json` to keep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detkit.files import write_beside

NAMES = {
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


def plain(value: Any) -> Any:
    """A metric as JSON has it: tensors become numbers or lists, what is not a number becomes null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_metrics(metrics: Mapping[str, Any], title: str, console: Console | None = None) -> None:
    """Prints the protocol, the AP numbers and the AP of each class.

    Args:
        metrics: as `Detector.last_metrics` keeps them: numbers by torchmetrics' names (in 0..1), `map_per_class` by
            class name, `num_images` that were counted, and `protocol`.
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
        elif isinstance(value, float) and key.startswith(("map", "mar")):
            table.add_row(key, _number(value))
    per_class = plain(metrics.get("map_per_class") or {})
    if per_class:
        table.add_section()
        for name, value in per_class.items():
            table.add_row(escape(f"AP {name}"), _number(value))
    console.print(f"\n{escape(title)}\n{escape(str(metrics.get('protocol', '')))}", highlight=False)
    console.print(table)


def write_metrics(
    folder: Path,
    metrics: Mapping[str, Any],
    *,
    checkpoint: Path,
    data: str,
    split: str,
    version: str,
) -> Path:
    """Writes `metrics.json` into a run's folder, beside and renamed.

    Args:
        folder: the run's folder.
        metrics: see `print_metrics`.
        checkpoint: the checkpoint evaluated.
        data: the data set in words.
        split: "test" or "val".
        version: detkit's version.

    Returns:
        The file's path.
    """
    content = {
        **plain(metrics),
        "checkpoint": str(checkpoint),
        "data": data,
        "split": split,
        "detkit": version,
    }
    path = folder / "metrics.json"
    write_beside(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return path


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
