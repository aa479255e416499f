"""The generations' table: as cells to print, as CSV, and as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detkit.features.architectures import architecture
from detkit.files import write_beside, write_json
from detkit.tools.benchmark.generations import GENERATIONS
from detkit.tools.benchmark.measuring import Row
from detkit.tools.benchmark.stage_clock import FEATURES, HEADS, PROPOSALS, STAGES


def ratio(rows: Sequence[Row], row: Row, with_proposals: bool = True) -> float | None:
    """How many times as quick as R-CNN, with proposals or without; None where there is no R-CNN among the rows."""
    first = next((each for each in rows if each.key == "rcnn"), None)
    return None if first is None else first.total(with_proposals) / row.total(with_proposals)


def ratio_2015(row: Row) -> float:
    """The same in the course's table."""
    return GENERATIONS["rcnn"].seconds_2015 / row.seconds_2015


#: A Fast R-CNN that is less than so many times as quick as R-CNN wants an explanation.
EXPECTED_RATIO = 2.0


def why_so_close(rows: Sequence[Row], backbone: str, crop_size: int) -> str | None:
    """A line on a Fast R-CNN that is hardly quicker than R-CNN, from what was measured; None where it is.

    One map for all regions pays if the regions together cost more than the map: small crops, few proposals and small
    networks turn the generations' order round.

    Args:
        rows: of R-CNN and Fast R-CNN, if they were measured.
        backbone: of all.
        crop_size: of R-CNN, pixels.
    """
    found = {row.key: row for row in rows}
    if not {"rcnn", "fast_rcnn"} <= found.keys():
        return None
    rcnn, fast = found["rcnn"], found["fast_rcnn"]
    times, without = ratio(rows, fast), ratio(rows, fast, False)
    if times >= EXPECTED_RATIO:
        return None
    start = f"note: Fast R-CNN is {as_factor(times)} as quick as R-CNN, for "
    if without >= EXPECTED_RATIO:
        share = f"{in_seconds(fast.seconds[PROPOSALS])} of its {in_seconds(fast.total())} s"
        return f"{start}proposals, which both need, take {share}; without them it is {as_factor(without)} as quick"
    crops, shared, heads = (
        in_seconds(s) for s in (rcnn.seconds[FEATURES], fast.seconds[FEATURES], fast.seconds[HEADS])
    )
    each = f"{1000 * rcnn.seconds[FEATURES] / max(rcnn.boxes, 1):.2g} ms each, {backbone}"
    own = architecture(backbone).crop_size
    larger = f"crops of {own} pixels (crop_size) and " if crop_size < own else ""
    return (
        f"{start}R-CNN's {rcnn.boxes:,.0f} {rcnn.inputs} pixels take {crops} s ({each}), the shared map {shared} s and "
        f"the heads on it {heads} s; to see what sharing saves, take {larger}a larger backbone"
    )


def in_seconds(value: float) -> str:
    """Three digits that count, as far as a tenth of a millisecond."""
    return f"{value:.{max(0, min(4, 2 - _magnitude(value)))}f}"


def as_factor(value: float | None) -> str:
    """Two digits that count, such as 25x and 1.2x; nothing for None."""
    return "" if value is None else f"{value:.{max(0, 1 - _magnitude(value))}f}".removesuffix(".0") + "x"


def cells(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The table in groups of lines, each group with its heading: a label, and a text for each of the rows."""

    def line(label: str, values: Sequence[str]) -> tuple[str, ...]:
        return (label, *values)

    seconds = [line(stage, [in_seconds(row.seconds[stage]) for row in rows]) for stage in STAGES]
    seconds.append(line("all", [in_seconds(row.total()) for row in rows]))
    ratios = [
        line("with proposals", [as_factor(ratio(rows, row)) for row in rows]),
        line("without proposals", [as_factor(ratio(rows, row, False)) for row in rows]),
        line("in 2015, with", [f"{as_factor(ratio_2015(row))} ({row.seconds_2015:g} s)" for row in rows]),
    ]
    quality = [
        line("input, pixels", [row.inputs for row in rows]),
        line("proposals an image", [f"{row.boxes:,.0f}" for row in rows]),
    ]
    for name, label in (
        ("recall_50", "their recall, IoU 0.5"),
        ("recall_70", "their recall, IoU 0.7"),
        ("map", "mAP of detections"),
    ):
        if any(getattr(row, name) is not None for row in rows):
            quality.append(line(label, [_share(getattr(row, name)) for row in rows]))
    return [("seconds an image", seconds), ("times as quick as R-CNN", ratios), ("", quality)]


def content(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, as plain data; ``about`` says what was measured, and where."""
    return {**about, "generations": [_plain(rows, row) | {"times": row.times} for row in rows]}


def write(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    """Writes generations.csv, a row for each generation, and generations.json, with every time; returns their paths."""
    text = io.StringIO()
    lines = [_flat(_plain(rows, row)) for row in rows]
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    paths = [folder / "generations.csv", folder / "generations.json"]
    write_beside(paths[0], text.getvalue())
    write_json(paths[1], content(rows, about))
    return paths


def _plain(rows: Sequence[Row], row: Row) -> dict[str, Any]:
    return {
        "generation": row.name,
        "checkpoint": row.checkpoint,
        "inputs": row.inputs,
        "seconds": {**row.seconds, "all": row.total()},
        "ratio": ratio(rows, row),
        "ratio_without_proposals": ratio(rows, row, False),
        "seconds_2015": row.seconds_2015,
        "ratio_2015": ratio_2015(row),
        "proposals_an_image": row.boxes,
        "recall_50": row.recall_50,
        "recall_70": row.recall_70,
        "map": row.map,
        "protocol": row.protocol,
    }


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """A mapping within becomes columns of its own."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        flat |= {name if part is None else f"{name}_{part.replace('-', '_')}": each for part, each in parts}
    return flat


def _magnitude(value: float) -> int:
    """The power of ten that the first digit stands for."""
    return int(f"{value:e}".partition("e")[2])


def _share(value: float | None) -> str:
    return "" if value is None else "n/a" if value != value else f"{value:.3f}"
