"""Exported detectors beside Python: the same detections, image by image, and the same mAP.

    python -m benchmarks.export_parity --photos PATH/voc-animals --run runs/my data/my_photos

MobileNetV3-320-FPN and R50-FPN with random weights, which detect something (see `pairs.py`), on 200 photographs at
their own sizes (R50-FPN takes ten seconds for each); each run's best checkpoint on the validation set of its data;
images of 1 x 1 and of 4000 x 300 pixels. By ONNX Runtime one image at a time, and four of one size together; by
OpenVINO. Python is the reference. Beside it stands Python made faster by `optimize_for_inference`: how far apart these
two are is what the order of float32 operations does, which random networks enlarge. Writes
benchmarks/results/export_parity.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import detkit
from benchmarks.pairs import build_pair
from benchmarks.real_data import machine
from benchmarks.selective_search import table
from benchmarks.training import DETECTORS
from detkit.data.image_io import read_image
from detkit.deploy.graph import DetectionGraph, describe, trace
from detkit.deploy.runtime import ExportedModel
from detkit.deploy.writers import convert_onnx, write_onnx
from detkit.detectors import optimize_for_inference
from detkit.detectors.base import RegionDetector
from detkit.evaluation import MeanAveragePrecision
from detkit.tools.benchmark.report import machine_text

#: Detectors with random weights.
RANDOM = ("MobileNetV3-FPN, 320 px", "R50-FPN, 600 px")
#: Height and width of images that no camera makes.
ODD_SIZES = ((1, 1), (300, 4000), (4000, 300))
#: Way -> its file's suffix, images at once, and the largest difference of a box in pixels and of a score.
WAYS = {
    "Python, optimized": ("", 1, 1e-2, 1e-4),
    "ONNX Runtime": (".onnx", 1, 1e-2, 1e-4),
    "ONNX Runtime, 4 images at once": (".onnx", 4, 1e-2, 1e-4),
    "OpenVINO": (".xml", 1, 1e-1, 1e-3),
}


@dataclass
class Agreement:
    """How the detections of a file compare with Python's.

    Attributes:
        images: number of images, and alike: of those with as many detections as in Python.
        detections: of Python, and agreeing: of those with a counterpart in the file.
        pixels, score: the median over all detections of the distance to the nearest box of its class, and of the
            difference of their scores.
    """

    images: int = 0
    alike: int = 0
    detections: int = 0
    agreeing: int = 0
    pixels: float = 0.0
    score: float = 0.0


def agreement(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], pixels: float, score: float
) -> Agreement:
    """Compare the detections of all images; the tolerances are of boxes and scores."""
    result, apart, scores_apart = Agreement(images=len(expected)), [0.0], [0.0]
    for ours, theirs in zip(expected, found, strict=True):
        a, b = ({name: np.asarray(each[name], dtype=np.float64) for name in each} for each in (ours, theirs))
        result.alike += len(a["scores"]) == len(b["scores"])
        result.detections += len(a["scores"])
        if not len(a["scores"]) or not len(b["scores"]):
            continue
        boxes = np.abs(a["boxes"][:, None] - b["boxes"]).max(2)
        boxes[a["labels"][:, None] != b["labels"]] = np.inf
        scores = np.abs(a["scores"][:, None] - b["scores"])
        result.agreeing += int(((boxes <= pixels) & (scores <= score)).any(1).sum())
        apart += boxes.min(1).tolist()
        scores_apart += scores[np.arange(len(boxes)), boxes.argmin(1)].tolist()
    result.pixels, result.score = statistics.median(apart), statistics.median(scores_apart)
    return result


def export(detector: RegionDetector, folder: Path) -> None:
    """Write model.onnx and model.xml."""
    description = describe(detector, "benchmark")
    write_onnx(trace(DetectionGraph(detector)), description, folder / "model.onnx")
    convert_onnx(folder / "model.onnx", description, folder / "model.xml")


def compare(
    detector: RegionDetector, images: Sequence[np.ndarray], truth: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """A row for each way; with ``truth`` (samples of the images) the mAP as well, of Python in a row of its own."""
    images = sorted(images, key=np.shape) if truth is None else images  # those of one size follow each other
    detector.eval().requires_grad_(False)
    with torch.inference_mode():
        expected = [detector.predict(image) for image in images]
    rows = [] if truth is None else [{"way": "Python", "map": mean_ap(detector, expected, truth)}]
    with TemporaryDirectory() as folder:
        export(detector, Path(folder))
        for way, (suffix, batch_size, pixels, score) in WAYS.items():
            model = ExportedModel(Path(folder, f"model{suffix}")) if suffix else optimized(detector)
            found = model.predict(list(images), batch_size=batch_size)
            assert isinstance(found, list)
            row = {"way": way, **asdict(agreement(expected, found, pixels, score))}
            rows.append(row if truth is None else row | {"map": mean_ap(detector, found, truth)})
    return rows


def optimized(detector: RegionDetector) -> RegionDetector:
    """A copy, made faster."""
    detector = copy.deepcopy(detector)
    optimize_for_inference(detector)
    return detector


def mean_ap(detector: RegionDetector, found: Iterable[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]]) -> float:
    """COCO's mAP."""
    metric = MeanAveragePrecision("coco", detector.class_names)
    tensors = [{name: torch.as_tensor(each[name]) for name in ("boxes", "scores", "labels")} for each in found]
    metric.update(tensors, list(truth))
    return float(metric.compute()["map"])


def odd_images() -> list[np.ndarray]:
    """Images of `ODD_SIZES` with structure in them."""
    generator = np.random.default_rng(0)
    return [
        np.kron(generator.integers(0, 256, (-(-h // 20), -(-w // 20), 3), np.uint8), np.ones((20, 20, 1), np.uint8))[
            :h, :w
        ]
        for h, w in ODD_SIZES
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--photos", required=True, help="folder in which photographs are looked for, such as voc-animals"
    )
    parser.add_argument("--count", type=int, default=200, help="photographs for each detector, at most")
    parser.add_argument("--run", nargs=2, action="append", default=[], metavar=("RUN", "DATA"))
    parser.add_argument("--output", default="benchmarks/results/export_parity.json")
    options = parser.parse_args(argv)
    content: dict[str, Any] = {"machine": machine(), "tables": {}}

    def add(title: str, rows: list[dict[str, Any]]) -> None:
        content["tables"][title] = rows
        print(text_of(title, rows), flush=True)
        write(content, Path(options.output))

    for path, data in options.run:
        module = detkit.data.open(data)
        samples = list(islice(module.dataset("val"), options.count))
        arrays = [sample["image"].permute(1, 2, 0).numpy() for sample in samples]
        add(f"{Path(path).name}, validation set of {Path(data).name}", compare(detkit.load(path), arrays, samples))
    files = sorted(path for path in Path(options.photos).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    photos = [read_image(file) for file in files[:: max(1, len(files) // options.count)][: options.count]]
    for name in RANDOM:
        arch, shorter, longer = DETECTORS[name]
        detector = build_pair(arch, min_size=shorter, max_size=longer)[0]
        add(f"{name}, random weights, photographs", compare(detector, photos, None))
        sizes = ", ".join(f"{width} x {height}" for height, width in ODD_SIZES)
        add(f"{name}, random weights, images of {sizes}", compare(detector, odd_images(), None))
    return content


def text_of(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One detector's table."""
    heading = ("", "images", "as many detections", "detections", "that agree", "median px", "median score", "COCO mAP")
    lines = [heading]
    for row in rows:
        figures = ("",) * 6
        if "images" in row:
            counts = [str(row[name]) for name in ("images", "alike", "detections", "agreeing")]
            figures = (*counts, f"{row['pixels']:.1e}", f"{row['score']:.1e}")
        lines.append((row["way"], *figures, f"{row['map']:.4f}" if "map" in row else ""))
    return "\n".join([f"## {title}", "", *table(lines), ""])


def write(content: Mapping[str, Any], path: Path) -> None:
    """The JSON file, and the tables beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    within = "; ".join(f"{way}: {px:g} px, {score:g}" for way, (_, _, px, score) in WAYS.items())
    intro = (
        "# Exported detectors beside Python\n\n"
        "`python -m benchmarks.export_parity`: a detection of Python agrees where the file gives one of the same class "
        f"within these tolerances ({within}). The medians are of the distance to the nearest box of its class, and of "
        'the difference of their scores. "Python, optimized" shows what the order of float32 operations alone does. '
        "The runtimes also round the coordinates of resized images otherwise than PyTorch, where the scale is not "
        "exact.\n\n"
        f"{machine_text(content['machine'])}\n\n"
    )
    tables = "\n".join(text_of(title, rows) for title, rows in content["tables"].items())
    path.with_suffix(".md").write_text(intro + tables, encoding="utf-8")


if __name__ == "__main__":
    main()
