"""What a GPU shows that the simulated device of the tests cannot, in one command of at most 9 minutes.

    python -m benchmarks.gpu

Runs, as long as there is time: the checks of tests/device on the GPU; the waits of the host by PyTorch's profiler;
training and detection beside torchvision, in turns; R-CNN's crops; and Shapes fitted in mixed precision beside the CPU.
Weights are random, nothing is downloaded. Each part that ends is written at once, to benchmarks/results/gpu_CARD.json
and .md; a part for which there was no time, or that failed, says so there. `--device cpu --quick` runs every part in a
minute, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from benchmarks.pairs import Side, Step, build_pair, images, sides_of
from benchmarks.selective_search import table
from detkit.cli.noise import quiet
from detkit.features import build_crop_network, warp
from detkit.features.crop_reader import CropReader, CropSettings, has_bf16
from detkit.tools.benchmark.report import machine, machine_text

ROOT = Path(__file__).parents[1]
#: Calls of CUDA in which the host waits, and the copies to the host, as the profiler names them.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


@dataclass(frozen=True)
class Sizes:
    """How much each part does.

    Args:
        arch: the detector, by torchvision's name.
        regions: of an image in training.
        height, width: of the images, which are not resized.
        batch_size: of training; halved until it fits the memory.
        batches: of detection.
        rounds: turns of each side; the median counts.
        steps: in a turn.
        crops, crop_size: of R-CNN.
        epochs: of Shapes.
        shapes: training and validation images of Shapes.
        checks: which tests of tests/device, as pytest's -k takes it.
    """

    arch: str = "fasterrcnn_resnet50_fpn"
    regions: int = 512
    height: int = 800
    width: int = 1216
    batch_size: int = 16
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 7
    steps: int = 4
    crops: int = 2000
    crop_size: int = 227
    epochs: int = 9
    shapes: tuple[int, int] = (500, 100)
    checks: str = ""


QUICK = Sizes(
    arch="fasterrcnn_mobilenet_v3_large_320_fpn",
    regions=8,
    height=64,
    width=96,
    batch_size=1,
    batches=(1, 2),
    rounds=1,
    steps=1,
    crops=20,
    crop_size=64,
    epochs=1,
    shapes=(4, 2),
    checks="losses_that_are_kept",
)


class OutOfTime(BaseException):
    """The time is up; no `Exception`, so that nothing catches it by chance."""


class Budget:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise OutOfTime within when there is none left."""

        def stop(*_: Any) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 0.01))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Run(NamedTuple):
    """What each part is given."""

    device: torch.device
    sizes: Sizes
    budget: Budget


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall time of a call, the mean of several, with all that the device does for it."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return 1000 * (time.perf_counter() - began) / times


def in_turns(works: dict[str, Callable[[], object]], run: Run, times: int = 1) -> dict[str, float]:
    """Median milliseconds of each work, after a turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(run.sizes.rounds + 1):
        for name, work in works.items():
            taken[name].append(milliseconds(work, run.device, times))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


# -- the parts --------------------------------------------------------------------------------------


def environment(run: Run) -> dict[str, Any]:
    """The machine and the versions."""
    about = machine(run.device) | {"torchvision": torchvision.__version__}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        about |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def checks(run: Run) -> dict[str, Any]:
    """The checks of the detectors in tests/device, on this device."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", "--tb=no"]
    command += ["tests/device/check_detectors.py", *(["-k", run.sizes.checks] if run.sizes.checks else [])]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    if run.device.type == "cuda":
        environment["DETKIT_TEST_DEVICE"] = str(run.device)
    limit = min(150, run.budget.left)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    failed = [line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if not counts:
        raise RuntimeError(f"pytest told no counts: {(done.stdout + done.stderr)[-500:]}")
    return {"device": "simulated" if run.device.type == "cpu" else run.device.type, **counts, "failures": failed}


def both_sides(run: Run, count: int) -> dict[str, Side]:
    """Both detectors, and so many images for them."""
    sizes = run.sizes
    shorter, longer = sorted((sizes.height, sizes.width))
    pair = build_pair(sizes.arch, sizes.regions, min_size=shorter, max_size=longer)
    return sides_of(*pair, images(count, sizes.height, sizes.width), run.device)


def waits(run: Run) -> dict[str, Any]:
    """How often the host waits in a training step and in a detection of two images, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device.type == "cuda" else [])]
    counts: dict[str, Any] = {}
    for name, side in both_sides(run, 2).items():
        step = Step(side, bf16=True)

        def detect(side: Side = side) -> None:
            side.model.eval()
            with torch.inference_mode():
                side.detect()

        for what, work in (("training step", step), ("detection", detect)):
            work()
            wait(run.device)  # what is waited for before does not count
            with profile(activities=activities) as found:
                work()
            events = found.key_averages()
            counts[f"{name}: {what}"] = {
                kind: sum(event.count for event in events if event.key.startswith(kind)) for kind in WAITS
            }
    return counts


def training(run: Run, compiled: bool = False) -> dict[str, Any]:
    """Images a second of training in bfloat16, and the peak memory."""
    count = run.sizes.batch_size
    while True:
        sides = works = None  # what did not fit is freed
        try:
            sides = both_sides(run, count)
            works = {name: Step(side, bf16=True) for name, side in sides.items()}
            if compiled:
                for side in sides.values():
                    side.model.backbone.compile(dynamic=False)
            with torch.compiler.set_stance("force_eager" if run.sizes is QUICK else "default"):
                first = {name: _first(work, run.device) for name, work in works.items()}
                taken = in_turns(works, run, run.sizes.steps)
            break
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            count //= 2
    return {
        "batch_size": count,
        "images_per_second": {name: 1000 * count / value for name, value in taken.items()},
        "peak_gib": {name: memory for name, (_, memory) in first.items()},
        "first_loss": {name: loss for name, (loss, _) in first.items()},
    }


def training_compiled(run: Run) -> dict[str, Any]:
    """The same with the backbone compiled, on both sides."""
    return training(run, compiled=True)


def _first(step: Step, device: torch.device) -> tuple[float, float | None]:
    """The first step's loss, and the GiB on the device at most, with what was there before; None on a CPU."""
    if device.type != "cuda":
        return float(step()), None
    torch.cuda.reset_peak_memory_stats(device)
    loss = float(step())
    return loss, torch.cuda.max_memory_allocated(device) / 2**30


def detection(run: Run) -> dict[str, Any]:
    """Milliseconds a batch, from images on the device to detections."""
    found: dict[str, Any] = {}
    for count in run.sizes.batches:
        sides = both_sides(run, count)
        for precision in ("float32", "bfloat16"):

            def work(side: Side, bf16: bool = precision == "bfloat16") -> None:
                with torch.inference_mode(), torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
                    side.detect()

            works = {name: lambda side=side: work(side) for name, side in sides.items()}
            for side in sides.values():
                side.model.eval()
            found[f"batch {count}, {precision}"] = in_turns(works, run)
    return found


def crops(run: Run) -> dict[str, Any]:
    """Crops a second of R-CNN: cut out and resized, beside torchvision's RoIAlign; and AlexNet's features of them."""
    sizes, device = run.sizes, run.device
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([500.0, 375])
    corner = torch.rand(sizes.crops, 2, generator=generator) * extent * 0.7
    size = (0.05 + 0.5 * torch.rand(sizes.crops, 2, generator=generator)) * extent
    boxes = torch.cat([corner, torch.minimum(corner + size, extent)], dim=1).to(device)
    image = torch.randn(3, 375, 500, generator=generator).to(device)
    network = build_crop_network("alexnet", sizes.crop_size).to(device).eval()
    reader = CropReader(network, CropSettings(size=sizes.crop_size))
    shape = (sizes.crop_size, sizes.crop_size)

    def in_parts(work: Callable[[torch.Tensor], object]) -> None:
        for some in boxes.split(256):
            work(some)

    works = {
        "warp": lambda: in_parts(lambda some: warp(image, some, sizes.crop_size)),
        "torchvision.ops.roi_align": lambda: in_parts(
            lambda some: torchvision.ops.roi_align(image[None], [some], shape, sampling_ratio=1)
        ),
        "warp and AlexNet's features": lambda: reader.read(image, boxes),
    }
    with torch.inference_mode():
        taken = in_turns(works, run)
    return {name: 1000 * sizes.crops / value for name, value in taken.items()}


def shapes(run: Run) -> dict[str, Any]:
    """mAP of `configs/shapes/faster_rcnn.yaml`, with fewer epochs, by device and precision; one seed each."""
    from detkit.cli.lightning_cli import run as run_command

    kinds = [("cpu", "32-true")]
    if run.device.type == "cuda":
        kinds = [("gpu", "bf16-mixed"), ("gpu", "16-mixed"), *kinds]
    elif has_bf16(run.device):
        kinds = [("cpu", "bf16-mixed"), *kinds]
    sizes, found = run.sizes, {}
    with tempfile.TemporaryDirectory() as folder:
        for accelerator, precision in kinds:
            options = {
                "trainer.accelerator": accelerator,
                "trainer.devices": 1,
                "trainer.precision": precision,
                "trainer.max_epochs": sizes.epochs,
                "trainer.check_val_every_n_epoch": sizes.epochs,
                "trainer.enable_progress_bar": "false",
                "trainer.default_root_dir": f"{folder}/{accelerator}_{precision}",
                "data.path": f"{folder}/shapes",
                "data.num_train": sizes.shapes[0],
                "data.num_val": sizes.shapes[1],
                "data.num_test": 1,
            }
            began = time.perf_counter()
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            cli = run_command("fit", ["--config", "shapes/faster_rcnn", *words])
            found[f"{accelerator}, {precision}"] = {
                "map": cli.model.last_metrics["map"],
                "map_50": cli.model.last_metrics["map_50"],
                "protocol": str(cli.model.last_metrics["protocol"]),
                "seconds": time.perf_counter() - began,
            }
    return found


#: Each part, and the seconds it needs at least on a GPU; the most important first.
PARTS: dict[str, tuple[Callable[[Run], dict[str, Any]], float]] = {
    "environment": (environment, 0),
    "checks": (checks, 30),
    "waits": (waits, 20),
    "training": (training, 30),
    "detection": (detection, 30),
    "crops": (crops, 15),
    "shapes": (shapes, 90),
    "training_compiled": (training_compiled, 100),
}


def run_part(name: str, run: Run) -> dict[str, Any]:
    """What a part found; ``stopped`` says why it did not come to its end."""
    part, needed = PARTS[name]
    quick = run.sizes is QUICK
    if run.budget.left < (1 if quick else needed):
        return {"stopped": f"skipped: {run.budget.left:.0f} s were left, and it needs {needed:.0f}"}
    try:
        with run.budget.enforced():
            return part(run)
    except (OutOfTime, subprocess.TimeoutExpired):
        return {"stopped": "the time was up before its end"}
    except Exception as error:
        traceback.print_exc()
        return {"stopped": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


# -- the report -------------------------------------------------------------------------------------


def report(content: dict[str, Any]) -> str:
    """The results as markdown."""
    parts, sizes = content["parts"], content["sizes"]
    where = parts["environment"]
    pixels = f"{sizes['height']} x {sizes['width']} pixels"
    lines = [f"# On a GPU: {where['device']}", ""]
    if content["quick"]:
        lines += ["A trial by `--quick`, on sizes so small that the numbers mean nothing.", ""]
    lines += [
        "`python -m benchmarks.gpu`. Weights are random, the same on both sides; medians of "
        f"{sizes['rounds']} turns, wall time, one process. The detector is {sizes['arch']}, with frozen batch norm and "
        f"three stages that learn; images of {pixels}; detkit in channels_last, torchvision as it comes.",
        "",
    ]
    for name, (title, rows_of) in TABLES.items():
        result = parts.get(name, {"stopped": "not run"})
        lines += [f"## {title}", "", *([result["stopped"]] if "stopped" in result else rows_of(result)), ""]
    more = ""
    if "cuda" in where:
        more = f"; {where['memory_gib']} GiB, CUDA {where['cuda']}, cuDNN {where['cudnn']}"
    lines += [f"{machine_text(where)}, torchvision {where['torchvision']}{more}.", ""]
    return "\n".join(lines)


def _checks_rows(result: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{result[name]} {name}" for name in ("passed", "failed", "error") if name in result)
    return [f"On the device `{result['device']}`: {counts}.", *(f"- `{line}`" for line in result["failures"])]


def _waits_rows(result: dict[str, Any]) -> list[str]:
    rows = [("two images, bfloat16 in training", *WAITS)]
    rows += [(name, *(str(counts[kind]) for kind in WAITS)) for name, counts in result.items()]
    note = "The profiler itself waits for the device when it ends, by cudaDeviceSynchronize."
    return [*table(rows), "", note]


def _training_rows(result: dict[str, Any]) -> list[str]:
    rows = [(f"batch of {result['batch_size']}, bfloat16", "images/s", "peak GiB")]
    for name, value in result["images_per_second"].items():
        peak = result["peak_gib"][name]
        rows.append((name, f"{value:.1f}", "-" if peak is None else f"{peak:.1f}"))
    speeds = result["images_per_second"]
    ratio = f"{speeds['detkit'] / speeds['torchvision']:.2f}x torchvision's speed. The peak contains both detectors."
    return [*table(rows), "", ratio]


def _detection_rows(result: dict[str, Any]) -> list[str]:
    rows = [("ms a batch", "detkit", "torchvision", "speed")]
    for name, taken in result.items():
        ours, theirs = taken["detkit"], taken["torchvision"]
        rows.append((name, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}x"))
    return table(rows)


def _crops_rows(result: dict[str, Any]) -> list[str]:
    return table([("", "crops/s"), *((name, f"{value:.0f}") for name, value in result.items())])


def _shapes_rows(result: dict[str, Any]) -> list[str]:
    rows = [("", "mAP", "AP50", "seconds")]
    rows += [
        (name, f"{each['map']:.3f}", f"{each['map_50']:.3f}", f"{each['seconds']:.0f}") for name, each in result.items()
    ]
    (protocol,) = {each["protocol"] for each in result.values()}
    return [*table(rows), "", f"{protocol}. One seed each: differences of two points are not significant."]


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "checks": ("The checks of tests/device", _checks_rows),
    "waits": ("Waits of the host", _waits_rows),
    "training": ("Training", _training_rows),
    "training_compiled": ("Training, backbone compiled on both sides", _training_rows),
    "detection": ("Detection", _detection_rows),
    "crops": ("R-CNN's crops", _crops_rows),
    "shapes": ("Shapes", _shapes_rows),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts, and write what each found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu for a trial")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that every part works")
    parser.add_argument("--seconds", type=float, default=530, help="for everything")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder")
    options = parser.parse_args(argv)
    budget = Budget(options.seconds)
    try:
        device = torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:
        parser.error(f"device {options.device}: {str(error).splitlines()[0]}")
    quiet()
    sizes = QUICK if options.quick else Sizes()
    content: dict[str, Any] = {"quick": options.quick, "sizes": vars(sizes), "parts": {}}
    card = re.sub(r"\W+", "_", machine(device)["device"].lower())
    options.output.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(["environment", *options.parts]):
        began = time.monotonic()
        content["parts"][name] = result = run_part(name, Run(device, sizes, budget))
        print(
            f"{name}: {result.get('stopped', 'done')} ({time.monotonic() - began:.0f} s, {budget.left:.0f} s left)",
            flush=True,
        )
        text = report(content)
        for suffix, written in ((".json", json.dumps(content, indent=1) + "\n"), (".md", text)):
            (options.output / f"gpu_{card}{suffix}").write_text(written, encoding="utf-8")
    print(text)
    return content


if __name__ == "__main__":
    main()
