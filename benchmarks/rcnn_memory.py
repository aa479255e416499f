"""How much memory and disk R-CNN's stages take: 400 photographs, up to 2,000 proposals each, in one `detkit fit`.

    python -m benchmarks.rcnn_memory --data PATH/voc-animals --weights PATH/mobilenet_v2_imagenet.pth

The process's peak is the kernel's own count (ru_maxrss); the features' folder is looked at every second while it runs,
and held against the gigabytes that the fit announced. Small crops, so that it ends in half an hour: MobileNetV2's fc7
has 1,280 numbers for crops of any size, its pool5 320 for 32 pixels, and 2,880 from 96 on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.generations import make_subset
from benchmarks.real_data import ENVIRONMENT, machine
from detkit.proposals import ProposalStore

HERE = Path(__file__).parent
LIMIT = 4.0  # GB that the process may take


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a folder; some may be deleted meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def watch(command: list[str], features: Path, log: Path) -> dict[str, Any]:
    """Run a command; its peak memory, and the peak size of the folder `features`.

    Raises:
        SystemExit: it failed.
    """
    began, most = time.perf_counter(), 0
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            most = max(most, folder_bytes(features))
            time.sleep(1)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"detkit fit ended with {code}: see {log}")
    return {
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "disk_gb": round(most / 1e9, 2),
        "left_gb": round(folder_bytes(features) / 1e9, 2),
    }


def announced(log: str) -> dict[str, Any]:
    """What the fit printed about its features, SVMs and regressors."""
    regions = re.search(r"features of all regions: ([\d,]+) images, ([\d.]+) GB \(budget ([\d.]+) GB\)", log)
    if regions is None:
        raise SystemExit("the fit did not keep the features of all regions: raise --budget")
    lines = [line for line in log.splitlines() if line.startswith(("SVMs:", "box regressors:"))]
    return {"announced_gb": float(regions[2]), "budget_gb": float(regions[3]), "stages": lines}


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder around VOC2012's animals")
    parser.add_argument("--weights", required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--crop_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning")
    parser.add_argument("--budget", type=float, default=4.0, help="feature_files.budget, GB")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_rcnn_memory"), help="for subset and run")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    subset = make_subset(args.data, args.work / "subset", {"train": args.images, "val": 4})
    options = ["--config", str(HERE / "voc_animals_rcnn.yaml"), "--data.path", str(subset)]
    options += ["--model.weights", args.weights, "--trainer.default_root_dir", str(args.work)]
    options += ["--trainer.max_steps", str(args.steps), "--model.crop.size", str(args.crop_size)]
    options += ["--model.crop.context", "2", "--model.optim.warmup_steps", "0"]
    options += ["--model.proposals.method.mode", "quality"]
    options += ["--model.proposals.max_boxes", f"[{args.proposals},{args.proposals}]"]
    options += ["--model.feature_files.budget", str(args.budget)]
    log = args.work / "fit.log"
    result = watch([sys.executable, "-m", "detkit", "fit", *options], args.work / "features", log)
    result |= announced(log.read_text(encoding="utf-8"))
    store = ProposalStore(next((subset / "proposals").glob("train-*.proposals")))
    result["proposals"] = statistics.fmean(min(len(boxes), args.proposals) for boxes in store.values())
    where = machine()
    content = {"machine": where, "images": args.images, "proposals": args.proposals, "result": result}
    within = result["peak_gb"] < LIMIT and result["disk_gb"] <= result["budget_gb"]
    rows = [
        ("peak memory of the process", f"{result['peak_gb']:.2f} GB", f"{LIMIT:g} GB"),
        ("features on disk, at most", f"{result['disk_gb']:.2f} GB", f"{result['budget_gb']:g} GB"),
        ("announced before the first", f"{result['announced_gb']:.2f} GB", ""),
        ("left after the fit", f"{result['left_gb']:.2f} GB", ""),
    ]
    text = "\n".join(
        [
            f"# R-CNN on {args.images} photographs, {result['proposals']:,.0f} proposals each: memory and disk",
            "",
            "| | measured | limit |",
            "|---|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"{'Within' if within else 'NOT within'} both limits. One `detkit fit`: {args.steps} steps of fine-tuning, "
            f"then features, SVMs and box regressors; MobileNetV2, crops of {args.crop_size}, selective search's "
            f"quality mode; {result['seconds']} s, {result['cpu_seconds']} s of them computing.",
            "",
            *(f"- {line}" for line in result["stages"]),
            "",
            f"{where['date']}: {where['cpu']}, {where['cores']} cores, no GPU; Python {where['python']}, torch "
            f"{where['torch']}.",
            "",
        ]
    )
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "rcnn_memory.md").write_text(text, encoding="utf-8")
    (args.output / "rcnn_memory.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
