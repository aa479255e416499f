"""The tables of benchmarks/selective_search.py."""

from __future__ import annotations

from typing import Any


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in markdown, the first as the heading, numbers to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return lines


def report(content: dict[str, Any]) -> str:
    """All tables, in markdown."""
    where, data = content["machine"], content["data"]
    lines = ["# Selective search: detkit beside OpenCV", ""]
    lines += [f"{data['images']} photographs of {data['name']} {data['split']}, one thread a side, in turns.", ""]
    if content["partitions"]:
        equal, names = content["partitions"], list(content["partitions"])
        total = data["images"] * len(names)
        lines += [f"Initial regions equal to OpenCV's: {sum(equal.values())} of {total} partitions.", ""]
        ks = sorted({float(name.split()[1]) for name in names})
        rows = [("colour space", *(f"k {k:g}" for k in ks))]
        for space in dict.fromkeys(name.split()[0] for name in names):
            rows.append((space, *(str(equal[f"{space} {k:g}"]) for k in ks)))
        lines += [*table(rows), ""]
    rows = [("", *(f"{mode}, {side}" for mode in content["modes"] for side in ("detkit", "OpenCV")))]
    for key, label in (("cpu_seconds", "CPU seconds an image, median"), ("seconds", "seconds an image, median")):
        rows.append((label, *(f"{m[key][s]:.3f}" for m in content["modes"].values() for s in ("detkit", "opencv"))))
    for key, label in (("cpu_seconds_ratio", "OpenCV's CPU time over ours, median"), ("seconds_ratio", "wall time")):
        rows.append((label, *(text for m in content["modes"].values() for text in (f"{m[key]:.1f}", ""))))
    rows.append(
        ("boxes an image", *(f"{m['boxes'][s]:.0f}" for m in content["modes"].values() for s in ("detkit", "opencv")))
    )
    shares = (f"{100 * m['common_of_opencvs']:.1f} %" for m in content["modes"].values())
    rows.append(("of OpenCV's boxes also ours", *(text for share in shares for text in (share, ""))))
    lines += [*table(rows), ""]
    for mode, found in content["recall"].items():
        lines += [
            f"Recall in {mode} mode of {found['objects']} objects (difficult ones left out), equal numbers of boxes:"
        ]
        rows = [("first boxes", *(f"{m}, {s}" for m in ("IoU 0.5", "IoU 0.7", "MABO") for s in ("detkit", "OpenCV")))]
        for count in found["detkit"]:
            values = (found[s][count][m] for m in ("recall_50", "recall_70", "mabo") for s in ("detkit", "opencv"))
            rows.append((count, *(f"{value:.3f}" for value in values)))
        lines += ["", *table(rows), ""]
    speed = content["images_per_second"]
    if speed:
        lines += [
            f"Images a second in fast mode: {speed['1']:.1f} with one thread, {speed['2']:.1f} with two "
            f"({speed['2'] / speed['1']:.2f} times as many).",
            "",
        ]
    lines += [
        f"{where['date']}: {where['cpu']}, {where['cores']} cores, load {where['load']:.1f} at the end; Python "
        f"{where['python']}, OpenCV {where['opencv']}, its contributed modules {where['opencv_contrib']}.",
        "",
    ]
    return "\n".join(lines)
