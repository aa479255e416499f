"""How long a command takes for one image, and what it imports for it.

    python -m benchmarks.start_up runs/my best.onnx photo.jpg --output benchmarks/results/start_up.md

Whole processes on one core, in turns; the medians of their CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_data import machine
from benchmarks.selective_search import table
from detkit.tools.benchmark.report import machine_text


def seconds_of(command: Sequence[str]) -> float:
    """CPU seconds of a process.

    Raises:
        SystemExit: it failed.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="of a detector")
    parser.add_argument("exported", help="the same detector, as `detkit export` has written it")
    parser.add_argument("image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args(argv)
    where = machine_text(machine())
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        predict = [sys.executable, "-m", "detkit", "predict", "--output", folder]
        commands = {
            "detkit predict RUN IMAGE": [*predict, options.run, options.image],
            "detkit predict FILE.onnx IMAGE": [*predict, options.exported, options.image],
        }
        for packages in ("torch", "torch, torchvision", "lightning.pytorch"):
            commands[f"python -c 'import {packages}'"] = [sys.executable, "-c", f"import {packages}"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.repeats + 1):
            for name, command in commands.items():
                seconds[name].append(seconds_of(command))
    rows = [("", "CPU s"), *((f"`{name}`", f"{statistics.median(each[1:]):.2f}") for name, each in seconds.items())]
    text = "\n".join(
        [
            "# The start of a command",
            "",
            f"`python -m benchmarks.start_up`: whole processes on one core, medians of {options.repeats} in turns.",
            "",
            *table(rows),
            "",
            where,
            "",
        ]
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
