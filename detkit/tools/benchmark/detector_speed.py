"""How fast a detector is on this machine, stage by stage, beside torchvision's and its exported formats."""

from __future__ import annotations

import csv
import importlib.util
import io
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from detkit.boxes import box_iou
from detkit.data.image_io import as_array, as_image
from detkit.data.inputs import find_inputs
from detkit.data.shapes_drawing import draw_scene
from detkit.deploy.graph import DetectionGraph, describe, trace
from detkit.deploy.runtime import ExportedModel
from detkit.deploy.writers import convert_onnx, write_onnx
from detkit.detectors import Detector, FasterRCNN, load, optimize_for_inference
from detkit.engine.torchvision_detectors import ARCHITECTURES
from detkit.errors import ConfigError
from detkit.evaluation.tables import render
from detkit.features.crop_reader import has_bf16
from detkit.files import check_output, staged, write_json, write_text
from detkit.progress import Progress
from detkit.settings import check_range, construct
from detkit.system import available_cores, keep_freed_memory
from detkit.tools.benchmark.picture import COLOURS, MUTED, SETTINGS
from detkit.tools.benchmark.report import machine, machine_text
from detkit.tools.benchmark.stage_clock import STAGES, time_detection
from detkit.tools.benchmark.torchvision_equivalent import torchvision_equivalent

#: The detections of an image (H, W, 3), a mapping of boxes (N, 4), scores (N,), labels (N,).
Predict = Callable[[np.ndarray], Any]
PYTHON, OPTIMIZED, BF16, TORCHVISION = "detkit", "detkit, optimized", "detkit, optimized, bfloat16", "torchvision"
#: Pixels a side of the pictures that are drawn where no images are given, and how many classes random weights have.
SIDE, CLASSES = 640, 90


@dataclass(frozen=True)
class SpeedRow:
    """What was measured of one way to run the detector.

    Attributes:
        name: such as "detkit", "torchvision" or "onnx".
        seconds: wall clock, and cpu_seconds: of all threads; of an image, the median over all images and rounds.
        ratio: times as fast as torchvision, else as "detkit", by the wall clock: the median over pairs of the same
            image and round.
        same: share of the detections of "detkit" that it finds, too: of the same class, IoU above 0.99, scores within
            0.01; None where there are none.
        peak_mb: peak memory of a process that does nothing else, in MB; None where the system does not tell.
        stages: stage of `STAGES` -> seconds; None where it cannot be divided.
    """

    name: str
    seconds: float
    cpu_seconds: float
    ratio: float
    same: float | None
    peak_mb: float | None
    stages: dict[str, float] | None


@dataclass(frozen=True)
class SpeedResult:
    """What `speed` returns.

    Attributes:
        rows: one for each way to run the detector.
        about: the machine and the settings, as speed.json holds them.
        paths: speed.csv, speed.json and speed.svg.
        text: the table.
    """

    rows: list[SpeedRow]
    about: dict[str, Any]
    paths: list[Path]
    text: str


def speed(
    model: str = "fasterrcnn_mobilenet_v3_large_320_fpn",
    images: list[str] | str | None = None,
    count: int = 5,
    rounds: int = 5,
    threads: int | None = None,
    output: str | Path = "runs/benchmark_speed",
) -> SpeedResult:
    """Time a detector on this machine: in Python, by torchvision, and exported; in turns, on the same images.

    Args:
        model: A run, a checkpoint or torchvision:NAME; or the NAME of one of torchvision's Faster R-CNNs, with random
            weights.
        images: A file, folder or pattern, or a list of them; by default pictures are drawn.
        count: At most so many images, spread evenly.
        rounds: How often each image is timed.
        threads: Of every runtime; by default the cores that the process may use.
        output: Folder of speed.csv, speed.json and speed.svg.

    Raises:
        DetkitError: an argument, a checkpoint or an image that cannot be used.
    """
    for name, value in (("count", count), ("rounds", rounds), ("threads", threads)):
        check_range(name, value, 1)
    folder, threads = Path(output), threads or available_cores()
    check_output(folder)
    detector = open_detector(model)
    pictures = _pictures(images, count)
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with TemporaryDirectory() as exported:
            files = export_all(detector, Path(exported))
            names = [PYTHON, OPTIMIZED, *([BF16] if has_bf16(detector.device) else [])]
            names += [TORCHVISION] * (torchvision_equivalent(detector) is not None)
            ways = {name: open_way(name, model, threads) for name in names}
            ways |= {name: open_way(str(file), model, threads) for name, file in files.items()}
            about = {
                "model": model,
                "machine": machine(detector.device),
                "images": len(pictures),
                "sizes": sorted({f"{each.shape[1]} x {each.shape[0]}" for each in pictures}),
                "rounds": rounds,
            }
            print(f"timing {', '.join(ways)} on {len(pictures)} images, {threads} threads", flush=True)
            times, found = time_in_turns(ways, pictures, rounds)
            paths_of = {name: str(files.get(name, name)) for name in ways}
            peaks = {name: peak_memory(paths_of[name], model, threads, pictures[0]) for name in ways}
        stages = {PYTHON: _stages(detector, pictures, rounds)}
        optimize_for_inference(detector)
        stages[OPTIMIZED] = _stages(detector, pictures, rounds)
    finally:
        torch.set_num_threads(before)
    rows = [_row(name, times, found, peaks[name], stages.get(name)) for name in ways]
    caption = f"{model}; {len(pictures)} images, {rounds} rounds\n{machine_text(about['machine'])}"
    with staged(folder) as part:  # all three or none
        written = write_rows(rows, about, part)
        draw_speed(rows, caption, part / "speed.svg")
    paths = [folder / name for name in (*written, "speed.svg")]
    return SpeedResult(rows, about, paths, "\n".join([_text(rows), caption, *(f"written: {path}" for path in paths)]))


# -- ways to run a detector --------------------------------------------------------------------


def open_detector(model: str) -> Detector:
    """The detector of a run or checkpoint, or one of torchvision's architectures with random weights."""
    if model not in ARCHITECTURES or Path(model).exists():
        return load(model)
    torch.manual_seed(0)
    names = [f"class {i + 1}" for i in range(CLASSES)]
    return construct(FasterRCNN, {"class_names": names, **ARCHITECTURES[model]}).eval()


def open_way(name: str, model: str, threads: int) -> Predict:
    """A way to run a detector: `PYTHON`, `OPTIMIZED`, `BF16`, `TORCHVISION`, or the path of an exported file."""
    if name not in (PYTHON, OPTIMIZED, BF16, TORCHVISION):
        return ExportedModel(name, threads=threads).predict
    detector = open_detector(model)
    if name == TORCHVISION:
        theirs = torchvision_equivalent(detector)
        assert theirs is not None

        @torch.inference_mode()
        def by_torchvision(image: np.ndarray) -> Mapping[str, Tensor]:
            return theirs([as_image(image) / 255])[0]

        return by_torchvision
    if name != PYTHON:
        optimize_for_inference(detector)
    if name != BF16:
        return detector.predict

    def in_bf16(image: np.ndarray) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return detector.predict(image)

    return in_bf16


def export_all(detector: Detector, folder: Path) -> dict[str, Path]:
    """The detector in each format that is installed, by its name; none where it cannot be exported."""
    if importlib.util.find_spec("onnxscript") is None:
        return {}
    print("exporting", flush=True)
    try:
        program = trace(DetectionGraph(detector))
    except ConfigError as error:
        print(f"not exported: {error}", flush=True)
        return {}
    if len(describe(detector, "").inputs) > 1:
        print("not exported: this detector needs proposals", flush=True)
        return {}
    files, description = {}, describe(detector, "benchmark")
    onnx = folder / "model.onnx"
    write_onnx(program, description, onnx)
    if importlib.util.find_spec("onnxruntime"):
        files["onnx"] = onnx
    if importlib.util.find_spec("openvino"):
        files["openvino"] = folder / "model.xml"
        convert_onnx(onnx, description, files["openvino"])
    return files


def _pictures(images: Sequence[str] | str | None, count: int) -> list[np.ndarray]:
    """At most so many images (H, W, 3), in memory."""
    if images is None:
        return [draw_scene(np.random.default_rng(seed), SIDE)[0] for seed in range(count)]
    found = find_inputs(images).images
    count = min(count, len(found))
    return [as_array(found[i * len(found) // count].path) for i in range(count)]


# -- measuring ---------------------------------------------------------------------------------


def time_in_turns(
    ways: Mapping[str, Predict], images: Sequence[np.ndarray], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, list[Mapping[str, Any]]]]:
    """Every image in each round, every way on each image, after a first image that is not timed.

    Returns:
        of each way its seconds (rounds, images, 2), by the wall clock and of the CPU, and what it found.
    """
    for predict in ways.values():
        predict(images[0])
    times = {name: np.zeros((rounds, len(images), 2)) for name in ways}
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in ways}
    with Progress("timing", rounds * len(images)) as progress:
        for turn in range(rounds):
            for i, image in enumerate(images):
                for name, predict in ways.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    detections = predict(image)
                    times[name][turn, i] = time.perf_counter() - wall, time.process_time() - cpu
                    if turn == 0:
                        found[name].append(detections)
                progress.step()
    return times, found


def _stages(detector: Detector, images: Sequence[np.ndarray], rounds: int) -> dict[str, float]:
    """Seconds of each stage, the median over all images and rounds."""
    samples = [{"image": as_image(image), "image_id": 0} for image in images]
    taken = [time_detection(detector, sample)[1] for _ in range(rounds) for sample in samples]
    return {stage: statistics.median(each[stage] for each in taken) for stage in STAGES}


def agreement(
    expected: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    least_iou: float = 0.99,
    most_apart: float = 0.01,
) -> float | None:
    """The share of expected detections that were found, see `SpeedRow.same`; None where none are expected.

    ``most_apart`` is of scores.
    """
    same = count = 0
    for a, b in zip(expected, found, strict=True):
        a, b = ({name: torch.as_tensor(values).float() for name, values in each.items()} for each in (a, b))
        near = (box_iou(a["boxes"], b["boxes"]) > least_iou) & (a["labels"][:, None] == b["labels"])
        near &= (a["scores"][:, None] - b["scores"]).abs() < most_apart
        same, count = same + int(near.any(1).sum()), count + len(a["scores"])
    return same / count if count else None


def peak_memory(name: str, model: str, threads: int, image: np.ndarray) -> float | None:
    """MB at the peak of a new process that opens this way to run a detector and predicts twice."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(sender, name, model, threads, image))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # it has failed, such as for want of memory
        return None
    finally:
        process.join()


def _own_peak() -> float | None:
    """MB at the peak of this process; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: `ru_maxrss` would hold the parent's peak
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return None if found is None else int(found[1]) * 1024 / 1e6
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None


def _measure_peak(sender: Any, name: str, model: str, threads: int, image: np.ndarray) -> None:
    torch.set_num_threads(threads)
    predict = open_way(name, model, threads)
    for _ in range(2):
        predict(image)
    sender.send(_own_peak())


# -- results -----------------------------------------------------------------------------------


def _row(
    name: str,
    times: Mapping[str, np.ndarray],
    found: Mapping[str, list[Mapping[str, Any]]],
    peak_mb: float | None,
    stages: dict[str, float] | None,
) -> SpeedRow:
    wall, cpu = (float(np.median(times[name][..., i])) for i in range(2))
    base = times.get(TORCHVISION, times[PYTHON])
    ratio = float(np.median(base[..., 0] / times[name][..., 0]))
    return SpeedRow(name, wall, cpu, ratio, agreement(found[PYTHON], found[name]), peak_mb, stages)


def write_rows(rows: Sequence[SpeedRow], about: Mapping[str, Any], folder: Path) -> list[str]:
    """Write speed.csv and speed.json; returns their names."""
    text = io.StringIO()
    lines = [
        {k: v for k, v in asdict(row).items() if k != "stages"}
        | {f"seconds_{stage}".replace("-", "_"): (row.stages or {}).get(stage) for stage in STAGES}
        for row in rows
    ]
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(folder / "speed.csv", text.getvalue())
    write_json(folder / "speed.json", {**about, "rows": [asdict(row) for row in rows]})
    return ["speed.csv", "speed.json"]


def _text(rows: Sequence[SpeedRow]) -> str:
    """The tables."""
    base = TORCHVISION if any(row.name == TORCHVISION for row in rows) else PYTHON
    table = Table("", title="an image", title_justify="left")
    for heading in ("ms", "images/s", f"times {base}", "CPU ms", "same detections", "peak MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        same = "none found" if row.same is None else f"{100 * row.same:.1f} %"
        peak = "" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
        numbers = [f"{1000 * row.seconds:.1f}", f"{1 / row.seconds:.2f}", f"{row.ratio:.2f}x"]
        table.add_row(escape(row.name), *numbers, f"{1000 * row.cpu_seconds:.1f}", same, peak)
    stages = Table("", *STAGES, title="ms of its stages", title_justify="left")
    for row in rows:
        if row.stages is not None:
            stages.add_row(escape(row.name), *(f"{1000 * row.stages[stage]:.1f}" for stage in STAGES))
    return render(table, stages)


def draw_speed(rows: Sequence[SpeedRow], caption: str, path: Path) -> None:
    """Write milliseconds an image of each way to run a detector as SVG, and the caption below."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", SETTINGS]):
        figure = Figure(figsize=(9, 1.3 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        values = [1000 * row.seconds for row in rows]
        axes.barh(range(len(rows)), values, 0.6, color=COLOURS[STAGES[1]])
        for height, (row, value) in enumerate(zip(rows, values, strict=True)):
            axes.annotate(
                f"{value:.0f} ms, {row.ratio:.2f}x",
                (value, height),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_xlim(0, max(values) * 1.2)
        axes.grid(axis="x")
        axes.set_title("milliseconds an image, and how many times as fast", fontsize=10, loc="left")
        figure.supxlabel(caption, fontsize=8, color=MUTED)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    write_text(path, text.getvalue())
