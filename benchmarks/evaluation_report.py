"""The tables of `benchmarks.evaluation` in markdown."""

from __future__ import annotations

from typing import Any

LABELS = {
    "detkit": "detkit",
    "detkit, empty cache": "detkit, the very first time (compiles)",
    "detkit with its report": "detkit with its report",
    "faster_coco_eval": "faster-coco-eval",
    "pycocotools": "pycocotools",
    "detkit_stream": "detkit",
    "torchmetrics_faster_coco_eval": "torchmetrics over faster-coco-eval",
    "torchmetrics_pycocotools": "torchmetrics over pycocotools",
}
ORDER = list(LABELS)


def report(content: dict[str, Any]) -> str:
    """What the JSON holds, to read."""
    size, where = content["set"], content["machine"]
    ours = content["memory"]["detkit"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("numba", "torch", "pycocotools", "torchmetrics"))
    if where["faster-coco-eval"]:
        versions += f", faster-coco-eval {where['faster-coco-eval']}"
    busy = ours["wall"] and ours["cpu"] / ours["wall"]
    return "\n".join(
        [
            "# COCO's twelve numbers: detkit beside its peers",
            "",
            f"{size['images']:,} images, {size['objects']:,} objects ({size['crowds']:,} crowds), "
            f"{size['detections']:,} detections, {size['classes']} classes, made up (`evaluation_data.py`). Each run "
            f"in a process of its own, in turns. Medians (runs of each: {ours['runs']}); of ours, of the calls after a "
            "process's first.",
            "",
            "## From memory",
            "",
            *_table(content["memory"], "detkit", load=True),
            "",
            f"Loading is `loadRes` for the peers, and sorting arrays by image for detkit. detkit's first call in a "
            f"process takes {ours['wall_first_call']:.2f} s, for compiled code is read from its cache. Memory: of the "
            "whole process at its peak, and how far that is above what it held before (imports and input).",
            "",
            "## Batch by batch",
            "",
            "`update` with batches of 8 images (tensors), then one `compute`.",
            "",
            *_table(content["stream"], "detkit_stream"),
            "",
            "torchmetrics' numbers differ since its recall thresholds are float32.",
            "",
            "## From files",
            "",
            "Whole processes, from instances and results in JSON to the numbers on the screen.",
            "",
            *_table(content["files"], "detkit"),
            "",
            f"{where['date']}: {where['cpu']}, {where['cores']} cores; Python {where['python']}, {versions}. Every "
            f"contender may use all cores (detkit: {busy:.1f} at a time). Load of the machine before: "
            f"{where['load_before']}.",
            "",
        ]
    )


def _table(results: dict[str, dict[str, Any]], ours: str, load: bool = False) -> list[str]:
    header = ["", *(["loading, s"] if load else []), "wall, s", "CPU, s", "detkit is faster", "peak memory, MB"]
    header += [*(["added, MB"] if any("memory_before" in each for each in results.values()) else [])]
    header.append("difference")
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for name in sorted(results, key=ORDER.index):
        each = results[name]
        row = [LABELS[name]]
        if load:
            row.append(f"{each['load']:.3f}")
        row += [f"{each['wall']:.3f}", f"{each['cpu']:.3f}"]
        row.append("" if name.startswith("detkit") else f"{each['wall'] / results[ours]['wall']:.1f}x")
        row.append(f"{each['memory_peak']:.0f}")
        if "added, MB" in header:
            row.append(f"{each['memory_peak'] - each['memory_before']:.0f}")
        row.append(f"{each['difference']:.0e}" if "difference" in each else "")
        lines.append("| " + " | ".join(row) + " |")
    return lines
