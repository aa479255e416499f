"""The table of the generations as cells to print, as CSV and as JSON, and the machine it was measured on."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detkit.__about__ import __version__
from detkit.features.architectures import architecture
from detkit.files import write_json, write_text
from detkit.system import available_cores
from detkit.tools.benchmark.contenders import GENERATIONS
from detkit.tools.benchmark.measuring import Row
from detkit.tools.benchmark.stage_clock import FEATURES, HEADS, PROPOSALS, STAGES


def ratio(rows: Sequence[Row], row: Row, with_proposals: bool = True) -> float | None:
    """How many times as fast as R-CNN, with proposals or without; None if R-CNN is not among the rows."""
    first = next((each for each in rows if each.key == "rcnn"), None)
    return None if first is None else first.total(with_proposals) / row.total(with_proposals)


def ratio_2015(row: Row) -> float:
    """How many times as fast as R-CNN in the course's table."""
    return GENERATIONS["rcnn"].seconds_2015 / row.seconds_2015


#: A Fast R-CNN that is less than so many times as fast as R-CNN is explained.
EXPECTED_RATIO = 2.0


def why_so_close(rows: Sequence[Row], backbone: str, crop_size: int) -> str | None:
    """Why Fast R-CNN is hardly faster than R-CNN with crops of that size; None where it is much faster.

    A shared map saves time if all crops together cost more than the map. With small crops, few proposals or a small
    network R-CNN can be the faster one.
    """
    by_key = {row.key: row for row in rows}
    if not {"rcnn", "fast_rcnn"} <= by_key.keys():
        return None
    rcnn, fast = by_key["rcnn"], by_key["fast_rcnn"]
    times, without = ratio(rows, fast), ratio(rows, fast, False)
    if times >= EXPECTED_RATIO:
        return None
    start = f"note: Fast R-CNN is {as_factor(times)} as fast as R-CNN: "
    if without >= EXPECTED_RATIO:
        share = f"{in_seconds(fast.seconds[PROPOSALS])} of its {in_seconds(fast.total())} s"
        return f"{start}proposals, which both need, take {share}; without them it is {as_factor(without)} as fast"
    crops, shared, heads = map(in_seconds, (rcnn.seconds[FEATURES], fast.seconds[FEATURES], fast.seconds[HEADS]))
    of_crop = f"{1000 * rcnn.seconds[FEATURES] / max(rcnn.boxes, 1):.2g} ms each, {backbone}"
    usual = architecture(backbone).crop_size
    larger = f"crops of {usual} pixels (crop.size) and " if crop_size < usual else ""
    return (
        f"{start}R-CNN's {rcnn.boxes:,.0f} {rcnn.inputs} pixels take {crops} s ({of_crop}), the shared map {shared} s "
        f"and the heads on it {heads} s; to see what sharing saves, take {larger}a larger backbone"
    )


def in_seconds(value: float) -> str:
    """Three significant digits, down to a tenth of a millisecond."""
    return f"{value:.{max(0, min(4, 2 - _magnitude(value)))}f}"


def as_factor(value: float | None) -> str:
    """Two significant digits, such as 25x and 1.2x; "" for None."""
    return "" if value is None else f"{value:.{max(0, 1 - _magnitude(value))}f}".removesuffix(".0") + "x"


def cells(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """The table as groups of lines, each group with its heading; a line is a label and a text for each row."""
    seconds = [(stage, *[in_seconds(row.seconds[stage]) for row in rows]) for stage in STAGES]
    seconds.append(("all", *[in_seconds(row.total()) for row in rows]))
    ratios = [
        ("with proposals", *[as_factor(ratio(rows, row)) for row in rows]),
        ("without proposals", *[as_factor(ratio(rows, row, False)) for row in rows]),
        ("in 2015, with", *[f"{as_factor(ratio_2015(row))} ({row.seconds_2015:g} s)" for row in rows]),
    ]
    quality = [
        ("input, pixels", *[row.inputs for row in rows]),
        ("proposals an image", *[f"{row.boxes:,.0f}" for row in rows]),
    ]
    labels = {"recall_50": "their recall, IoU 0.5", "recall_70": "their recall, IoU 0.7", "map": "mAP of detections"}
    for name, label in labels.items():
        if any(getattr(row, name) is not None for row in rows):
            quality.append((label, *[_share(getattr(row, name)) for row in rows]))
    return [("seconds an image", seconds), ("times as fast as R-CNN", ratios), ("", quality)]


def write(rows: Sequence[Row], about: dict[str, Any], folder: Path) -> list[Path]:
    """Write generations.csv, a row for each generation, and generations.json, with every time; returns their paths."""
    text = io.StringIO()
    lines = []
    for row in rows:
        line: dict[str, Any] = {}
        for name, value in _plain(rows, row).items():
            parts = value if isinstance(value, dict) else {"": value}
            line |= {f"{name}_{part}".rstrip("_").replace("-", "_"): number for part, number in parts.items()}
        lines.append(line)
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    paths = [folder / "generations.csv", folder / "generations.json"]
    write_text(paths[0], text.getvalue())
    write_json(paths[1], {**about, "generations": [_plain(rows, row) | {"times": row.times} for row in rows]})
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


def _magnitude(value: float) -> int:
    """The power of ten of the first digit."""
    return int(f"{value:e}".partition("e")[2])


def _share(value: float | None) -> str:
    return "" if value is None else "n/a" if value != value else f"{value:.3f}"


def machine(device: torch.device) -> dict[str, Any]:
    """Date, cpu, cores, threads, load (of the last minute, None where the system has none), device and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detkit": __version__,
    }


def machine_text(where: dict[str, Any]) -> str:
    """What `machine` returns, in one line."""
    load = "" if where["load"] is None else f" (load {where['load']:.1f} at the start)"
    threads = "1 thread" if where["threads"] == 1 else f"{where['threads']} threads"
    device = "no GPU" if where["device"] == "cpu" else where["device"]
    return (
        f"{where['cpu']}, {where['cores']} cores{load}, {threads}, {device}; "
        f"Python {where['python']}, torch {where['torch']}, detkit {where['detkit']}; {where['date']}"
    )


def _cpu() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
