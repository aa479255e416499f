"""detkit's recipe beside torchvision's own fine-tuning, at equal CPU time.

    python -m benchmarks.fine_tuning --config benchmarks/bccd_mobilenet_v2.yaml --folder runs/fine_tuning
    python -m benchmarks.fine_tuning --config benchmarks/bccd_mobilenet_v2.yaml --folder runs/fine_tuning \
        --table benchmarks/results/fine_tuning_bccd.md

The first command trains what is not yet in the folder, one run after the other (`--kind`, `--seed` for some of them);
the second one only makes the table. torchvision's kinds are those of `benchmarks.fine_tuning_torchvision`. `detkit` is
`detkit fit` with the config's detector and what `faster_rcnn/laptop` sets (`RECIPE` and `REPEAT`), for as many steps as
fit into the time, which a few steps in a process of their own measure before.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fine_tuning_torchvision import KINDS
from benchmarks.side import evaluate, finish, pin
from benchmarks.what_helps import RECIPE, SEEDS, mean_and_deviation

OURS = "detkit"
#: Rare classes more often. It changes nothing where each class is in 30 % of the images, as in BCCD.
REPEAT = {"--data.repeat_threshold": "0.3"}
#: Steps of the process that measures.
PILOT = 20


def fit(config: str, seed: int, steps: int, folder: Path) -> tuple[Any, Any]:
    """`detkit fit` for some steps; its command line object, and the clock of its steps."""
    from benchmarks.detkit_faster_rcnn import StepTimer
    from detkit.cli.lightning_cli import run
    from detkit.cli.noise import quiet

    quiet()
    words = [word for pair in (RECIPE | REPEAT).items() for word in pair]
    words += ["--seed_everything", str(seed), "--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.default_root_dir", str(folder), "--trainer.enable_checkpointing", "false"]
    words += ["--trainer.callbacks+", "benchmarks.detkit_faster_rcnn.StepTimer"]
    cli = run("fit", ["--config", config, "--import", "benchmarks.detkit_faster_rcnn", *words])
    (timer,) = (each for each in cli.trainer.callbacks if isinstance(each, StepTimer))
    return cli, timer.clock


def train(config: str, seed: int, seconds: float, limit: int | None, output: Path) -> None:
    """Train for as many steps as fit into the time, evaluate and write."""
    pilot = [sys.executable, "-m", "benchmarks.fine_tuning", "--config", config, "--folder", str(output.parent)]
    text = subprocess.run([*pilot, "--pilot"], check=True, capture_output=True, text=True).stdout
    step = float(text.split()[-1])
    cli, clock = fit(config, seed, math.floor(seconds / step), output.with_suffix(""))
    evaluation = evaluate(cli.model.eval().detect, cli.datamodule, limit)
    finish(str(output), OURS, clock, evaluation, kind=OURS, seed=seed, cpu_seconds=seconds, step_measured_before=step)


def table(folder: Path, title: str) -> str:
    """Mean and deviation over the seeds of each kind."""
    lines = [
        f"# {title}",
        "",
        "| | AP | AP50 | AP75 | steps | CPU s of the steps | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in (OURS, *KINDS):
        files = [folder / f"{kind}-{seed}.json" for seed in SEEDS]
        results = [json.loads(file.read_text()) for file in files if file.is_file()]
        if not results:
            continue
        columns = [
            mean_and_deviation([100 * each["ap"]["coco"][key] for each in results])
            for key in ("map", "map_50", "map_75")
        ]
        steps = statistics.fmean(each["steps"] for each in results)
        seconds = statistics.fmean(each["steps"] * each["step_cpu_seconds_mean"] for each in results)
        lines.append(f"| {kind} | {' | '.join(columns)} | {steps:.0f} | {seconds:.0f} | {len(results)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, or make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config of `detkit fit` with FasterRCNN, MobileNetV2 and VOC")
    parser.add_argument("--folder", required=True, type=Path, help="of the results, a JSON file each")
    parser.add_argument("--cpu_seconds", type=float, default=400, help="CPU time of each training")
    parser.add_argument("--kind", choices=(OURS, *KINDS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--val_images", type=int, help="evaluate on the first so many; all without it")
    parser.add_argument("--core", type=int, help="the CPU core this process stays on")
    parser.add_argument("--pilot", action="store_true", help="only measure a step of detkit's")
    parser.add_argument("--table", type=Path, help="write the table into this file")
    options = parser.parse_args(argv)
    pin(options.core)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.pilot:
        print(fit(options.config, 0, PILOT, options.folder / "pilot")[1].whole_step())
        return
    if options.table:
        text = table(options.folder, f"{Path(options.config).stem}: {options.cpu_seconds:.0f} s of CPU time each")
        print(text)
        options.table.write_text(text, encoding="utf-8")
        return
    for seed in SEEDS if options.seed is None else (options.seed,):
        for kind in (OURS, *KINDS) if options.kind is None else (options.kind,):
            output = options.folder / f"{kind}-{seed}.json"
            if output.is_file():
                continue
            if kind == OURS:
                train(options.config, seed, options.cpu_seconds, options.val_images, output)
                continue
            words = ["--config", options.config, "--kind", kind, "--seed", str(seed), "--output", str(output)]
            words += ["--cpu_seconds", str(options.cpu_seconds)]
            words += ["--val_images", str(options.val_images)] if options.val_images else []
            subprocess.run([sys.executable, "-m", "benchmarks.fine_tuning_torchvision", *words], check=True)


if __name__ == "__main__":
    main()
