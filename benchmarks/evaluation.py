"""The evaluator beside other evaluators, in one run: COCO's twelve numbers from memory, batch by batch, and from files.

    python -m benchmarks.evaluation --output benchmarks/results/evaluation.json

hotcoco, ultrafast-pycocotools, vernier and faster-coco-eval are not among the project's dependencies: `--peers` is the
Python of an environment that has them (`pip install numpy pycocotools hotcoco ...`); those that it lacks are left out,
and named. `--small` is a trial of half a minute. The table also lands beside the JSON, as markdown.
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

#: Peers by the names of their modules: the packages.
PEERS = {
    "hotcoco": "hotcoco",
    "ultrafast_pycocotools": "ultrafast-pycocotools",
    "vernier": "vernier",
    "faster_coco_eval": "faster-coco-eval",
    "pycocotools": "pycocotools",
}
#: From this load on, before the first run, other programs ran.
BUSY = 0.5
#: Contenders of a minute or more, which run once.
SLOW = ("pycocotools", "torchmetrics_pycocotools", "torchmetrics_faster_coco_eval")
PEER_SCRIPTS = {
    "hotcoco": """
import json, sys
from hotcoco import COCO, COCOeval
truth = COCO(sys.argv[1])
run = COCOeval(truth, truth.load_res(sys.argv[2]), "bbox")
run.run()
print(json.dumps([float(value) for value in run.stats[:12]]))
""",
    "ultrafast_pycocotools": """
import json, sys
from ultrafast_pycocotools import COCO, COCOeval
truth = COCO(sys.argv[1], verbose=False)
run = COCOeval(truth, truth.loadRes(sys.argv[2]), "bbox")
run.run()
print(json.dumps([float(value) for value in run.stats[:12]]))
""",
    "vernier": """
import json, os, sys
from pathlib import Path
from vernier.instance import Bbox, CocoDataset, Evaluator
truth, found = (Path(name).read_bytes() for name in sys.argv[1:])
evaluator = Evaluator(iou=Bbox(), parity_mode="strict")
run = evaluator.evaluate(CocoDataset.from_json(truth), found, num_threads=os.cpu_count())
print(json.dumps([float(value) for value in run.stats[:12]]))
""",
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
    "detkit with its report": "detkit with its report",
    **PEERS,
    "detkit_stream": "detkit",
    "hotcoco_stream": "hotcoco",
    "vernier_stream": "vernier",
    "torchmetrics_faster_coco_eval": "torchmetrics over faster-coco-eval",
    "torchmetrics_pycocotools": "torchmetrics over pycocotools",
}


def run_contender(name: str, folder: Path, calls: int, python: str) -> dict[str, Any]:
    """One contender in a process of this Python.

    Raises:
        SystemExit: it failed.
    """
    output = folder / "result.json"
    command = [python, "-m", "benchmarks.evaluation_contenders", name, "--set", str(folder)]
    command += ["--calls", str(calls), "--output", str(output)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(output.read_text(encoding="utf-8"))


def run_files(name: str, folder: Path, python: str, first: bool = False) -> dict[str, Any]:
    """A whole process from COCO's files to the twelve numbers: its seconds, and its peak memory in MB.

    `first` runs it as on its first call ever, with no compiled file of Python or numba.

    Raises:
        SystemExit: it failed.
    """
    annotations, detections = str(folder / "annotations.json"), str(folder / "detections.json")
    if name.startswith("detkit"):
        files = ["--annotations", annotations, "--detections", detections, "--output", str(folder / "report")]
        command = [sys.executable, "-m", "detkit", "evaluate", *files]
        command += [] if name == "detkit with its report" else ["--report", "false", "--intervals", "0"]
    else:
        command = [python, "-c", PEER_SCRIPTS[name], annotations, detections]
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as empty, open(folder / "out.txt", "w+", encoding="utf-8") as out:
        if first:
            environment |= {"PYTHONPYCACHEPREFIX": empty, "NUMBA_CACHE_DIR": empty}
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, env=environment)
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
    folder: Path, repeats: int, calls: int, skip: set[str], python: str
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every contender `repeats` times, in turns, those of `SLOW` once; peers by this Python."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {"memory": {}, "stream": {}, "files": {}, "first": {}}
    os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
    run_files("detkit with its report", folder, python)  # compiles what the report needs beside
    for repeat in range(repeats):
        for name in _from(repeat, list(CONTENDERS)):
            if name in skip or (repeat and name in SLOW):
                continue
            kind = "stream" if "stream" in name or name.startswith("torchmetrics") else "memory"
            several = calls if name not in SLOW and kind == "memory" else 1
            ours = name.startswith(("detkit", "torchmetrics"))
            result = run_contender(name, folder, several, sys.executable if ours else python)
            found[kind].setdefault(name, []).append(result)
            print(f"{name}: {min(result['wall']):.2f} s", flush=True)
        for name in _from(repeat, ["detkit", "detkit with its report", *PEER_SCRIPTS]):
            if name in skip or (repeat and name in SLOW):
                continue
            result = run_files(name, folder, python)
            found["files"].setdefault(name, []).append(result)
            print(f"from files, {name}: {result['wall'][0]:.2f} s", flush=True)
            if name not in SLOW and name != "detkit with its report":
                found["first"].setdefault(name, []).append(run_files(name, folder, python, first=True))
    return found


def _from(first: int, names: list[str]) -> list[str]:
    """The names in turn from another one on: what runs after a process of gigabytes is slower."""
    first %= len(names)
    return names[first:] + names[:first]


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
    named = ("numpy", "numba", "torch", "torchmetrics", *PEERS.values())
    versions = ", ".join(f"{name} {where[name]}" for name in named if where.get(name))
    missing = [f"{name}: not installed" for name in PEERS.values() if not where.get(name)]
    left_out = [f"{LABELS[name]}: left out ({name})" for name in content["skipped"]]
    busy = ours["wall"] and ours["cpu"] / ours["wall"]
    others = " Other programs ran on the machine: compare CPU times." if where["load_before"] > BUSY else ""
    return "\n".join(
        [
            "# COCO's twelve numbers: detkit beside its peers",
            "",
            f"{size['images']:,} images, {size['objects']:,} objects ({size['crowds']:,} crowds), "
            f"{size['detections']:,} detections, {size['classes']} classes, made up (`evaluation_data.py`). Each run "
            f"in a process of its own, in turns. Medians (runs of each: {ours['runs']}, of the slow ones one); from "
            f"memory, of the calls after a process's first.{others}",
            *([""] if missing or left_out else []),
            "; ".join([*missing, *left_out]) + ("." if missing or left_out else ""),
            "",
            "## From memory",
            "",
            *_table(content["memory"], "detkit", load=True),
            "",
            "Each library from the form it reads fastest: matrices and columns where it takes them, else dictionaries. "
            "Loading is `loadRes` for the peers, and sorting arrays by image for detkit. detkit's first call in a "
            f"process takes {ours['cpu_first_call']:.2f} CPU s. Memory: of the whole process at its peak, and how far "
            "that is above what it held before (imports and input).",
            "",
            "## Batch by batch",
            "",
            "Batches of 8 images, then one call for the numbers: tensors for detkit and torchmetrics, arrays and "
            "dictionaries for hotcoco, arrays for vernier, which knows the ground truth before. ultrafast-pycocotools "
            "has no such interface for AP.",
            "",
            *_table(content["stream"], "detkit_stream"),
            "",
            "torchmetrics' numbers, where it is in the table, differ since its recall thresholds are float32.",
            "",
            "## From files",
            "",
            "Whole processes, from instances and results in JSON to the numbers on the screen.",
            "",
            *_table(content["files"], "detkit"),
            "",
            "## The first call ever",
            "",
            "The same with empty folders for what Python and numba compile.",
            "",
            *_table(content["first"], "detkit"),
            "",
            f"{where['date']}: {where['cpu']}, {where['cores']} cores; Python {where['python']}, {versions}. Every "
            f"contender may use all cores (detkit: {busy:.1f} at a time). Load of the machine before: "
            f"{where['load_before']}.",
            "",
        ]
    )


def _table(results: dict[str, dict[str, Any]], ours: str, load: bool = False) -> list[str]:
    header = ["", *(["loading, s"] if load else []), "wall, s", "CPU, s", "of detkit's CPU", "peak memory, MB"]
    header += [*(["added, MB"] if any("memory_before" in each for each in results.values()) else [])]
    header.append("difference")
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for name in sorted(results, key=list(LABELS).index):
        each = results[name]
        row = [LABELS[name]]
        if load:
            row.append(f"{each['load']:.3f}")
        row += [f"{each['wall']:.3f}", f"{each['cpu']:.3f}"]
        row.append("" if name.startswith("detkit") else f"{each['cpu'] / results[ours]['cpu']:.2f}x")
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
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with the peers")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="contenders to leave out")
    options = parser.parse_args()
    skip = set(options.skip)
    unknown = skip - CONTENDERS.keys()
    if unknown:
        parser.error(f"--skip: there are {', '.join(CONTENDERS)}, not {', '.join(sorted(unknown))}")
    skipped = sorted(skip)
    versions = _versions(options.peers, list(PEERS.values()))
    for name, package in PEERS.items():
        if versions[package] is None:
            skip |= {name, f"{name}_stream"}
            print(f"{package} is not installed: left out")
    if importlib.util.find_spec("faster_coco_eval") is None:
        skip.add("torchmetrics_faster_coco_eval")
    repeats, images = (1, 40) if options.small else (options.repeats, 5000)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        # This process stays small: Linux counts its memory among that of those it starts.
        make = [sys.executable, "-m", evaluation_data.__name__, folder, "--images", str(images)]
        subprocess.run(make, check=True)
        found = run_all(Path(folder), repeats, calls=5, skip=skip, python=options.peers)
        arrays = evaluation_data.load(Path(folder))
    reference = next(
        (found[kind]["pycocotools"][0]["numbers"] for kind in ("memory", "files") if "pycocotools" in found[kind]), None
    )
    where = machine()
    del where["threads_per_side"]
    where |= _versions(sys.executable, ["numpy", "numba", "torchmetrics"]) | versions
    content = {
        "machine": {**where, "load_before": round(load, 2)},
        "skipped": skipped,
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


def _versions(python: str, packages: list[str]) -> dict[str, str | None]:
    """The versions of packages in the environment of this Python; None for one that is not installed."""
    code = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""
    return json.loads(subprocess.run([python, "-c", code, *packages], capture_output=True, check=True).stdout)


if __name__ == "__main__":
    main()
