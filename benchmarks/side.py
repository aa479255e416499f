"""The code that both sides of a comparison share: config, core, clock and evaluator."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

PROTOCOLS = ("coco", "voc07")
WARM = 5
"""First steps that are not measured: they allocate memory and choose kernels."""


def arguments(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one side: config, output, core, max_steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="a config of `detkit fit` with FasterRCNN and VOC")
    parser.add_argument("--output", required=True, help="JSON file for the results")
    parser.add_argument("--core", type=int, help="the CPU core this process stays on; all cores without it")
    parser.add_argument("--max_steps", type=int, help="train this many steps instead of the config's epochs")
    return parser.parse_args(argv)


def pin(core: int | None) -> None:
    """Keep this process on one core with one thread."""
    if core is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)


def read_config(path: str) -> dict[str, Any]:
    """The config as plain data."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def data_module(config: dict[str, Any]) -> Any:
    """The config's data module."""
    from detkit import data

    return getattr(data, config["data"]["class_path"])(**config["data"]["init_args"])


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the config's FasterRCNN, groups as their dataclasses, defaults where the config has none."""
    from detkit.detectors import FasterRCNN
    from detkit.settings import arguments_from_plain, parameters_of

    defaults = {name: default for name, (_, default) in parameters_of(FasterRCNN).items()}
    return defaults | arguments_from_plain(FasterRCNN, config["model"]["init_args"])


class StepClock:
    """Seconds of each training step, from the loaded batch to the updated weights, without loading.

    The processor's time is kept beside the wall's: other programs on the machine lengthen only the second.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self.ends: list[float] = []  # the process's CPU time at the end of each step
        self._began = self._cpu_began = 0.0

    def start(self) -> None:
        """Call when the batch is loaded."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stop(self, loss: torch.Tensor) -> None:
        """Call after the optimizer's step."""
        self.seconds.append(time.perf_counter() - self._began)
        self.ends.append(time.process_time())
        self.cpu_seconds.append(self.ends[-1] - self._cpu_began)
        self.losses.append(float(loss))

    def whole_step(self) -> float:
        """CPU seconds of a step and its loading, the mean after the first few."""
        return (self.ends[-1] - self.ends[WARM]) / (len(self.ends) - 1 - WARM)

    def progress(self, side: str, every: int = 25) -> None:
        """Print the last step's loss and time every so many steps."""
        if len(self.seconds) % every == 0:
            last = f"loss {self.losses[-1]:.3f}, {self.seconds[-1]:.2f} s ({self.cpu_seconds[-1]:.2f} s of CPU)"
            print(f"{side}: step {len(self.seconds)}: {last}", flush=True)

    def summary(self) -> dict[str, Any]:
        """Steps, their median and mean seconds after the first few, and the loss along the way."""
        timed, cpu = (each[WARM:] or each for each in (self.seconds, self.cpu_seconds))
        tenth = max(len(self.losses) // 10, 1)
        return {
            "steps": len(self.seconds),
            "step_seconds_median": statistics.median(timed),
            "step_seconds_mean": statistics.fmean(timed),
            "step_cpu_seconds_median": statistics.median(cpu),
            "step_cpu_seconds_mean": statistics.fmean(cpu),
            "loss_first_tenth": statistics.fmean(self.losses[:tenth]),
            "loss_last_tenth": statistics.fmean(self.losses[-tenth:]),
        }


def evaluate(
    detect: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], module: Any, limit: int | None = None
) -> dict[str, Any]:
    """mAP on the validation set by each protocol, and images a second of `detect` (loading apart).

    Args:
        detect: batch of Samples -> Detections in the pixels of the samples' images.
        module: the data module, set up.
        limit: evaluate on the first so many images, in whole batches; None: on all.
    """
    from detkit.evaluation import MeanAveragePrecision

    metrics = {name: MeanAveragePrecision(name, module.class_names) for name in PROTOCOLS}
    images, seconds = 0, 0.0
    with torch.inference_mode():
        for batch in module.val_dataloader():
            if limit is not None and images >= limit:
                break
            began = time.perf_counter()
            detections = detect(batch)
            seconds += time.perf_counter() - began
            images += len(batch)
            for metric in metrics.values():
                metric.update(detections, batch)
    results: dict[str, Any] = {"images": images, "images_per_second": images / seconds, "ap": {}}
    for name, metric in metrics.items():
        values = metric.compute()
        results["ap"][name] = {
            "protocol": metric.protocol.description,
            **{key: float(values[key]) for key in ("map", "map_50", "map_75") if key in values},
            "per_class": dict(zip(module.class_names, values["map_per_class"].reshape(-1).tolist(), strict=True)),
        }
    return results


def finish(output: str, side: str, clock: StepClock, evaluation: dict[str, Any], **more: Any) -> None:
    """Print one side's results and write them as JSON."""
    result = {"side": side, **more, **clock.summary(), **evaluation}
    wall, cpu = result["step_seconds_median"], result["step_cpu_seconds_median"]
    print(f"{side}: {result['steps']} steps, median {wall:.3f} s (CPU {cpu:.3f} s)")
    print(f"  evaluation: {result['images_per_second']:.2f} images/s")
    for each in result["ap"].values():
        print(f"  {each['protocol']}: " + ", ".join(f"{k} {v:.4f}" for k, v in each.items() if isinstance(v, float)))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
