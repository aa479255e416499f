"""The main commands from end to end, on images that detkit draws itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.errors import DetkitError
from detkit.signals import SIGNALS

CONFIG = "shapes/faster_rcnn"
#: Trainer options of a fast demo: one epoch of a few steps.
FAST = {
    "max_epochs": 1,
    "limit_train_batches": 3,
    "limit_val_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
}
WRITTEN = {
    "overview.png": "12 test images: ground truth white, detections in colour",
    "predictions/": "each test image with its detections",
    "predictions.json": "all detections, in COCO's format",
    "report/index.html": "mAP, curves, errors and what to do about them (a page for the browser)",
    "report/metrics.json": "the same numbers, with their protocol",
    "metrics.csv": "losses and mAP over the run (events.*: the same for TensorBoard)",
    "checkpoints/": "best.ckpt and last.ckpt",
}


@dataclass(frozen=True)
class DemoResult:
    """What `demo` returns.

    Attributes:
        folder: the run, with the files of `WRITTEN`.
        metrics: the content of the report's metrics.json.
        text: how long it took, and what the folder holds.
    """

    folder: Path
    metrics: dict[str, Any]
    text: str


def demo(output: str | Path = "runs/demo", data_path: str | Path = "data/shapes", fast: bool = False) -> DemoResult:
    """Draw Shapes, train Faster R-CNN on it, test, predict, and tell where everything is.

    Each step is a command of the program, printed before it runs in a process of its own.

    Args:
        output: Folder of the run.
        data_path: Folder of the drawn images.
        fast: Train a few steps only, to see that everything works. Such a detector finds nothing.

    Raises:
        DetkitError: one of the commands failed.
    """
    from detkit.engine.checkpoints import find_checkpoint, run_folder

    began = time.monotonic()
    images = ["--data.path", str(data_path)]
    options = ["--config", CONFIG, "--trainer.default_root_dir", str(output), *images]
    if fast:
        options += [word for name, value in FAST.items() for word in (f"--trainer.{name}", str(value))]
    _run("[1/3] draw images and train Faster R-CNN on them", "fit", options)
    folder = run_folder(find_checkpoint(output).path)
    options = ["--ckpt_path", str(folder), "--data", "Shapes", *images]
    _run("[2/3] test the best checkpoint on images it has not seen", "test", [*options, *_limit("test", fast)])
    options += ["--predictions.draw", "true"]
    _run("[3/3] predict, and draw the detections", "predict", [*options, *_limit("predict", fast)])
    _draw_overview(folder, data_path)
    lines = [f"\nDone in {time.monotonic() - began:.0f} s. In {folder}:"]
    lines += [f"  {name:<20} {content}" for name, content in WRITTEN.items()]
    lines.append(f'Next: detkit.load("{folder}").predict("picture.jpg"), or notebooks/01_inference.ipynb')
    metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    return DemoResult(folder, metrics, "\n".join(lines))


def _limit(command: str, fast: bool) -> list[str]:
    return [f"--trainer.limit_{command}_batches", "1"] if fast else []


def _run(heading: str, command: str, options: list[str]) -> None:
    """Print a command of the program and run it."""
    print(f"\n{heading}\n$ detkit {command} {' '.join(options)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", "detkit", command, *options]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the process too; it may still be writing a checkpoint
            if SIGNALS.received == signal.SIGTERM:
                process.terminate()
            process.wait()
            raise
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise DetkitError(f"`detkit {command}` failed with code {code}; its message is above")


def _draw_overview(folder: Path, data_path: str | Path, count: int = 12, columns: int = 4) -> None:
    """Draw test images with ground truth and detections on one sheet, `overview.png` in the run's folder."""
    import detkit
    from detkit.drawing import make_sheet
    from detkit.files import staged

    dataset = detkit.data.Shapes(path=str(data_path)).dataset("test")
    samples = [dataset[i] for i in range(count)]
    model = detkit.load(folder)
    drawn = [
        detkit.draw(sample["image"], detections, targets=sample, class_names=model.class_names)
        for sample, detections in zip(samples, model.predict([s["image"] for s in samples]), strict=True)
    ]
    with staged(folder) as part:
        make_sheet(drawn, columns).save(part / "overview.png")
