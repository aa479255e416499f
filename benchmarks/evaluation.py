"""The evaluator beside other evaluators, in one run: COCO's twelve numbers from memory, batch by batch, and from files.

    python -m benchmarks.evaluation --output benchmarks/results/evaluation.json

faster-coco-eval is not among the project's dependencies (`uv pip install faster-coco-eval`); without it, what needs it
is left out. `--small` is a trial of half a minute. The table also lands beside the JSON, as markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import evaluation_data
from benchmarks.evaluation_contenders import CONTENDERS
from benchmarks.real_data import machine

TOLERANCE = 1e-12
"""The largest difference from pycocotools' numbers that is accepted."""

PEER_SCRIPTS = {
    "pycocotools": """
import json, sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO(sys.argv[1])
run = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
run.evaluate(); run.accumulate(); run.summarize()
print(json.dumps(run.stats.tolist()))
""",
    "faster_coco_eval": """
import json, sys
from faster_coco_eval import COCO, COCOeval_faster
truth = COCO(sys.argv[1])
run = COCOeval_faster(truth, truth.loadRes(sys.argv[2]), "bbox", print_function=lambda *_: None)
run.run()
print(json.dumps(run.stats.tolist()[:12]))
""",
}

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


def run_contender(name: str, folder: Path, calls: int) -> dict[str, Any]:
    """One contender in its own process.

    Raises:
        SystemExit: it failed.
    """
    output = folder / "result.json"
    command = [sys.executable, "-m", "benchmarks.evaluation_contenders", name, "--set", str(folder)]
    command += ["--calls", str(calls), "--output", str(output)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(output.read_text(encoding="utf-8"))


def run_files(name: str, folder: Path) -> dict[str, Any]:
    """A whole process from COCO's files to the twelve numbers: its seconds, and its peak memory in MB.

    Raises:
        SystemExit: it failed.
    """
    annotations, detections = str(folder / "annotations.json"), str(folder / "detections.json")
    if name.startswith("detkit"):
        files = ["--annotations", annotations, "--detections", detections, "--output", str(folder / "report")]
        command = [sys.executable, "-m", "detkit", "evaluate", *files]
        command += [] if name == "detkit with its report" else ["--report", "false", "--intervals", "0"]
    else:
        command = [sys.executable, "-c", PEER_SCRIPTS[name], annotations, detections]
    with open(folder / "out.txt", "w+", encoding="utf-8") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"failed: {' '.join(command)}")
        out.seek(0)
        printed = out.read()
    if name.startswith("detkit"):
        metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
        from benchmarks.evaluation_contenders import TWELVE

        numbers = [metrics[key] for key in TWELVE]
    else:
        numbers = [None if value == -1 else value for value in json.loads(printed.splitlines()[-1])]
    peak = used.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return {"wall": [seconds], "cpu": [used.ru_utime + used.ru_stime], "memory_peak": peak, "numbers": numbers}


def run_all(
    folder: Path, repeats: int, calls: int, skip: set[str], small: bool
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every contender `repeats` times, in turns; detkit once more with an empty cache, unless `small`."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"memory": {}, "stream": {}, "files": {}}
    if not small:
        os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
        found["memory"]["detkit, empty cache"] = [run_contender("detkit", folder, 1)]
        found["files"]["detkit, empty cache"] = [_with_empty_cache(folder)]
        run_files("detkit with its report", folder)  # compiles what the report needs beside
    for _ in range(repeats):
        for name in CONTENDERS:
            if name in skip:
                continue
            kind = "stream" if "stream" in name or name.startswith("torchmetrics") else "memory"
            result = run_contender(name, folder, calls if name.startswith("detkit") else 1)
            found[kind].setdefault(name, []).append(result)
            print(f"{name}: {min(result['wall']):.2f} s", flush=True)
        for name in ("detkit", "detkit with its report", *PEER_SCRIPTS):
            if name in skip:
                continue
            result = run_files(name, folder)
            found["files"].setdefault(name, []).append(result)
            print(f"from files, {name}: {result['wall'][0]:.2f} s", flush=True)
    return found


def _with_empty_cache(folder: Path) -> dict[str, Any]:
    cache = os.environ["NUMBA_CACHE_DIR"]
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba of another")
    try:
        return run_files("detkit", folder)
    finally:
        os.environ["NUMBA_CACHE_DIR"] = cache


def summarise(runs: list[dict[str, Any]], reference: list[float | None] | None) -> dict[str, Any]:
    """Medians over the runs of one contender.

    A process's first call is kept apart where it made several. `difference` is the largest to pycocotools' numbers.
    """
    apart = any(len(run["wall"]) > 1 for run in runs)
    result: dict[str, Any] = {"runs": len(runs)}
    for key in ("wall", "cpu"):
        result[key] = statistics.median(value for run in runs for value in run[key][apart:])
        if apart:
            result[f"{key}_first_call"] = statistics.median(run[key][0] for run in runs)
    for key in ("memory_before", "memory_peak"):
        if key in runs[0]:
            result[key] = statistics.median(run[key] for run in runs)
    if "load" in runs[0]:
        result["load"] = statistics.median(run["load"][0] for run in runs)
    result["numbers"] = runs[0]["numbers"]
    if reference is not None:
        result["difference"] = _difference(runs[0]["numbers"], reference)
    return result


def _difference(numbers: list[float | None], reference: list[float | None]) -> float:
    pairs = list(zip(numbers, reference, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        return float("inf")
    return max((abs(one - other) for one, other in pairs if one is not None and other is not None), default=0.0)


def report(content: dict[str, Any]) -> str:
    """The results as markdown."""
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
    for name in sorted(results, key=list(LABELS).index):
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


def main() -> None:
    """Run, print, write, and fail where detkit's numbers are not pycocotools'."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file; the table goes beside it as .md")
    parser.add_argument(
        "--small",
        action="store_true",
        help="a trial of half a minute: 40 images, one run each, none with an empty cache",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender, in turns (default: 3)")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    options = parser.parse_args()
    skip = set(options.skip)
    if importlib.util.find_spec("faster_coco_eval") is None:
        skip |= {"faster_coco_eval", "torchmetrics_faster_coco_eval"}
        print("faster-coco-eval is not installed (uv pip install faster-coco-eval): left out")
    repeats, images = (1, 40) if options.small else (options.repeats, 5000)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        # This process stays small: Linux counts its memory among that of those it starts.
        make = [sys.executable, "-m", evaluation_data.__name__, folder, "--images", str(images)]
        subprocess.run(make, check=True)
        found = run_all(Path(folder), repeats, calls=5, skip=skip, small=options.small)
        arrays = evaluation_data.load(Path(folder))
    reference = next(
        (found[kind]["pycocotools"][0]["numbers"] for kind in ("memory", "files") if "pycocotools" in found[kind]), None
    )
    where = machine()
    del where["threads_per_side"]
    for package in ("numba", "pycocotools", "faster-coco-eval", "torchmetrics"):
        where[package] = _version(package)
    content = {
        "machine": {**where, "load_before": round(load, 2)},
        "set": {
            "images": images,
            "objects": len(arrays["images"]),
            "crowds": int(arrays["crowd"].sum()),
            "detections": len(arrays["scores"]),
            "classes": len(arrays["category_ids"]),
        },
        **{
            kind: {name: summarise(runs, reference) for name, runs in contenders.items()}
            for kind, contenders in found.items()
        },
    }
    text = report(content)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    ours = [each for kind in found for name, each in content[kind].items() if name.startswith("detkit")]
    if any(each.get("difference", 0.0) > TOLERANCE for each in ours):
        raise SystemExit(f"detkit's numbers differ from pycocotools' by more than {TOLERANCE}")


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
