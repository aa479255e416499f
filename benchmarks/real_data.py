"""Faster R-CNN on real data: detkit's and torchvision's trained at the same time, each on one core.

    python -m benchmarks.real_data --config benchmarks/bccd_mobilenet_v2.yaml \
        --output benchmarks/results/bccd_mobilenet_v2.json

The table also lands beside the JSON, as markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIDES = {"detkit": "benchmarks.detkit_faster_rcnn", "torchvision": "benchmarks.torchvision_faster_rcnn"}
ENVIRONMENT = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
# glibc would give each large tensor back to the system, and fault its pages in again a moment later.
ENVIRONMENT |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}


def run_sides(config: str, max_steps: int | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Run both processes at once, each on its own core; their results by side.

    Raises:
        SystemExit: one of them failed.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None, None]
    if len(cores) < 2:
        raise SystemExit("two cores are needed: both sides run at once")
    running = {}
    for (side, module), core in zip(SIDES.items(), cores, strict=False):
        command = [sys.executable, "-m", module, "--config", config, "--output", str(folder / f"{side}.json")]
        command += ["--core", str(core)] if core is not None else []
        command += ["--max_steps", str(max_steps)] if max_steps else []
        # A session each: Linux shares a core out among sessions first, and the sides are to have the same of it.
        running[side] = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, start_new_session=True)
    try:
        failed = [side for side, process in running.items() if process.wait() != 0]
    finally:
        for process in running.values():
            process.terminate()
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return {side: json.loads((folder / f"{side}.json").read_text(encoding="utf-8")) for side in SIDES}


def machine() -> dict[str, Any]:
    """The machine and the versions, as `detkit benchmark` writes them, with torchvision's."""
    import torch
    import torchvision

    from detkit.tools.benchmark.report import machine as facts

    return facts(torch.device("cpu")) | {"threads_per_side": 1, "torchvision": torchvision.__version__}


def report(title: str, content: dict[str, Any], cut: bool) -> str:
    """The results as markdown; `cut` says that --max_steps ended the training early."""
    config, where, sides = (content[key] for key in ("config", "machine", "sides"))
    ours, theirs = sides["detkit"], sides["torchvision"]
    settings, data = config["model"]["init_args"], config["data"]["init_args"]
    rows = [("", "detkit", "torchvision", "difference")]
    for name, label in (("coco", "COCO"), ("voc07", "VOC07")):
        for key, text in (("map", "AP" if name == "coco" else "mAP"), ("map_50", "AP50"), ("map_75", "AP75")):
            if name == "voc07" and key != "map":
                continue
            a, b = (100 * side["ap"][name][key] for side in (ours, theirs))
            rows.append((f"{label} {text}", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"))
    for key, text in (("step_seconds", "seconds a step"), ("step_cpu_seconds", "its CPU seconds")):
        for kind in ("median", "mean"):
            a, b = (side[f"{key}_{kind}"] for side in (ours, theirs))
            rows.append((f"{text}, {kind}", f"{a:.3f}", f"{b:.3f}", f"{100 * (a / b - 1):+.1f} %"))
    a, b = (side["images_per_second"] for side in (ours, theirs))
    rows.append(("images/s in evaluation", f"{a:.2f}", f"{b:.2f}", f"{100 * (a / b - 1):+.0f} %"))
    share = ours["step_seconds_mean"] / ours["step_cpu_seconds_mean"]
    for name in ours["ap"]["coco"]["per_class"]:
        a, b = (100 * side["ap"]["coco"]["per_class"][name] for side in (ours, theirs))
        rows.append((f"COCO AP of {name}", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}"))
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "|---|---:|---:|---:|")
    return "\n".join(
        [
            f"# {title}: Faster R-CNN, detkit beside torchvision",
            "",
            f"{settings['backbone']}, shorter side {settings['image']['min_size']} px, {ours['steps']} steps of "
            f"{data['batch_size']} images, seed {ours['seed']}; {ours['images']} validation images."
            + (f" Cut short by --max_steps; the config has {config['trainer']['max_epochs']} epochs." if cut else ""),
            "",
            *table,
            "",
            f"AP in percent. {ours['ap']['coco']['protocol']}. {ours['ap']['voc07']['protocol']}.",
            "A step is forward, backward and optimizer; loading is not in it. Both ran at the same time."
            + (
                f" Other programs ran too: a step's wall time is {share:.1f} times its CPU time." if share > 1.1 else ""
            ),
            "",
            f"{where['date']}: {where['cpu']}, {where['cores']} cores, one core and one thread a side; "
            f"Python {where['python']}, torch {where['torch']}, torchvision {where['torchvision']}.",
            "",
        ]
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config of `detkit fit` under benchmarks/")
    parser.add_argument("--output", required=True, type=Path, help="JSON file; the table goes beside it as .md")
    parser.add_argument("--max_steps", type=int, help="a short trial: this many steps instead of the config's epochs")
    options = parser.parse_args()
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        sides = run_sides(options.config, options.max_steps, Path(folder))
    config = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
    content = {"config": config, "machine": machine(), "sides": sides}
    text = report(Path(options.config).stem, content, options.max_steps is not None)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
