"""Detection on a CPU beside torchvision: in Python, exported, in 8 bits, and the bare network as the limit.

    python -m benchmarks.inference --data PATH/voc-animals

Three detectors with random weights, which detect something (see `pairs.py`), on photographs at their own sizes, in
turns: every way on each photograph, in each round; for one thread and for two. Times are of the CPU, of all threads:
other programs lengthen them less than the wall clock's. "the network alone" is what no detector can do without: trunk,
pyramid, RPN head and box head on tensors that are there already, by PyTorch and by ONNX Runtime. Writes
benchmarks/results/inference.json and the tables as .md beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import detkit
from benchmarks.pairs import build_pair
from benchmarks.real_data import machine
from benchmarks.selective_search import table
from benchmarks.training import DETECTORS
from detkit.data.image_io import as_image, read_image
from detkit.deploy.graph import DetectionGraph, describe, trace
from detkit.deploy.quantization import quantize
from detkit.deploy.runtime import ExportedModel
from detkit.deploy.writers import convert_onnx, write_onnx
from detkit.detectors import optimize_for_inference
from detkit.detectors.inference import fold_batch_norms
from detkit.features.crop_reader import has_bf16
from detkit.system import keep_freed_memory
from detkit.tools.benchmark.detector_speed import Predict, agreement, time_in_turns

TORCHVISION, OURS = "torchvision", "detkit"
BARE, BARE_ONNX = "the network alone, PyTorch", "the network alone, ONNX Runtime"
CALIBRATION = 30


class Network(nn.Module):
    """The layers of a detector, without what lies between them."""

    def __init__(self, detector: detkit.FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.rpn_head = detector.backbone, detector.rpn.head
        self.box_head, self.box_predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor

    def forward(self, images: Tensor, regions: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) as the network sees them and pooled regions (R, C, S, S)."""
        return *self.rpn_head(self.backbone(images)), *self.box_predictor(self.box_head(regions))


def ways(arch: str, sizes: Mapping[str, int], photos: Sequence[Path], threads: int, folder: Path) -> dict[str, Predict]:
    """Every way to run a detector, by its name in the table."""
    ours, theirs = build_pair(arch, **sizes)
    ours.eval().requires_grad_(False)
    theirs.eval().requires_grad_(False)
    optimized, folded = (build_pair(arch, **sizes)[0].eval() for _ in range(2))
    optimize_for_inference(optimized)
    fold_batch_norms(folded)
    description = describe(ours, "benchmark")
    files = {name: folder / f"{name}.onnx" for name in ("ours", "folded", "int8", "theirs", "network")}
    write_onnx(trace(DetectionGraph(ours)), description, files["ours"])
    convert_onnx(files["ours"], description, folder / "ours.xml")
    write_onnx(trace(DetectionGraph(folded)), description, files["folded"])
    quantize(files["folded"], [str(photo) for photo in photos[:CALIBRATION]], description, files["int8"])

    @torch.inference_mode()
    def by_torchvision(image: np.ndarray) -> Mapping[str, Tensor]:
        return theirs([as_image(image) / 255])[0]

    found: dict[str, Predict] = {
        TORCHVISION: by_torchvision,
        OURS: ours.predict,
        "detkit, optimized": optimized.predict,
    }
    if has_bf16(torch.device("cpu")):
        found["detkit, optimized, bfloat16"] = _in_bf16(optimized)
    found["torchvision's own ONNX, ONNX Runtime"] = _legacy(theirs, files["theirs"], threads)
    found["detkit, ONNX Runtime"] = ExportedModel(files["ours"], threads=threads).predict
    found["detkit, OpenVINO"] = ExportedModel(folder / "ours.xml", threads=threads).predict
    found["detkit in 8 bits, ONNX Runtime"] = ExportedModel(files["int8"], threads=threads).predict
    return found | _bare(optimized, files["network"], threads)


def _in_bf16(detector: detkit.FasterRCNN) -> Predict:
    def predict(image: np.ndarray) -> Mapping[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return detector.predict(image)

    return predict


def _legacy(theirs: nn.Module, file: Path, threads: int) -> Predict:
    """torchvision's detector by the exporter that it was written for, of any image size."""
    example = torch.rand(3, 375, 500)
    axes = {"image": {1: "height", 2: "width"}}
    names = ["boxes", "labels", "scores"]
    torch.onnx.export(
        theirs, ([example],), str(file), dynamo=False, opset_version=17, input_names=["image"], output_names=names,
        dynamic_axes=axes,
    )  # fmt: skip
    session = _session(file, threads)

    def predict(image: np.ndarray) -> Mapping[str, Any]:
        planar = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        return dict(zip(names, session.run(names, {"image": planar}), strict=True))

    return predict


def _bare(optimized: detkit.FasterRCNN, file: Path, threads: int) -> dict[str, Predict]:
    """The layers alone; each photograph's tensor is made before it is timed the second time."""
    network = Network(optimized).eval()
    heads = optimized.roi_heads
    regions = torch.randn(
        optimized.rpn.settings.post_nms[1], optimized.backbone.channels[0], *[heads.pooler.output_size] * 2
    )
    regions = regions.contiguous(memory_format=torch.channels_last)
    seen: dict[int, Tensor] = {}

    def tensor_of(image: np.ndarray) -> Tensor:
        if id(image) not in seen:
            seen[id(image)] = optimized.preprocessing([as_image(image)]).tensor
        return seen[id(image)]

    shape = {2: torch.export.Dim("height", min=64, max=2048), 3: torch.export.Dim("width", min=64, max=2048)}
    example = torch.rand(1, 3, 320, 416)
    dynamic = {k: 32 * torch.export.Dim(f"cells{k}", min=2, max=64) for k in shape}
    program = torch.export.export(network, (example, regions), dynamic_shapes=(dynamic, None), strict=False)
    torch.onnx.export(program, (), str(file), dynamo=True, input_names=["images", "regions"], verbose=False)
    session = _session(file, threads)
    plain = np.ascontiguousarray(regions.numpy())

    @torch.inference_mode()
    def by_torch(image: np.ndarray) -> Mapping[str, Any]:
        network(tensor_of(image), regions)
        return {}

    def by_onnx(image: np.ndarray) -> Mapping[str, Any]:
        session.run(None, {"images": np.ascontiguousarray(tensor_of(image).numpy()), "regions": plain})
        return {}

    return {BARE: by_torch, BARE_ONNX: by_onnx}


def _session(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def measure(works: Mapping[str, Predict], images: Sequence[np.ndarray], rounds: int) -> list[dict[str, Any]]:
    """A row for each way: CPU milliseconds and wall milliseconds, speed by torchvision's CPU time, and what it finds."""
    for predict in works.values():  # tensors of the bare network are made
        for image in images:
            predict(image)
    times, found = time_in_turns(works, images, rounds)
    rows = []
    for name in works:
        cpu = times[TORCHVISION][..., 1] / times[name][..., 1]
        wall = times[TORCHVISION][..., 0] / times[name][..., 0]
        same = None if name in (BARE, BARE_ONNX) else agreement(found[TORCHVISION], found[name])
        rows.append(
            {
                "name": name,
                "cpu_ms": 1000 * float(np.median(times[name][..., 1])),
                "wall_ms": 1000 * float(np.median(times[name][..., 0])),
                "speed": float(np.median(cpu)),
                "speed_by_wall": float(np.median(wall)),
                "same": same,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder in which photographs are looked for, such as voc-animals")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--output", default="benchmarks/results/inference.json")
    options = parser.parse_args(argv)
    files = sorted(path for path in Path(options.data).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    step = max(1, len(files) // max(options.photos, CALIBRATION))
    files = files[::step]
    images = [read_image(file) for file in files[: options.photos]]
    keep_freed_memory()
    content: dict[str, Any] = {"machine": machine(), "photos": len(images), "rounds": options.rounds, "tables": []}
    for name in options.detectors:
        arch, shorter, longer = DETECTORS[name]
        for threads in options.threads:
            torch.set_num_threads(threads)
            with TemporaryDirectory() as folder:
                sizes = {"min_size": shorter, "max_size": longer}
                works = ways(arch, sizes, files, threads, Path(folder))
                rows = measure(works, images, options.rounds)
            content["tables"].append({"detector": name, "threads": threads, "rows": rows})
            print(text_of(content["tables"][-1]), flush=True)
            write(content, Path(options.output))
    return content


def text_of(found: Mapping[str, Any]) -> str:
    """One detector's table."""
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    rows = [
        [row["name"], f"{row['cpu_ms']:.0f}", f"{row['wall_ms']:.0f}", f"{row['speed']:.2f}x", f"{row['speed_by_wall']:.2f}x",
         "" if row["same"] is None else f"{100 * row['same']:.1f} %"]
        for row in found["rows"]
    ]  # fmt: skip
    heads = ["", "CPU ms", "wall ms", "speed, CPU", "speed, wall", "same detections"]
    return f"## {found['detector']}, {threads}\n\n{table(heads, rows)}\n"


def write(content: Mapping[str, Any], path: Path) -> None:
    """The JSON file, and the tables beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    intro = (
        "# Detection on a CPU\n\n"
        f"`python -m benchmarks.inference --data PATH`: {content['photos']} photographs, {content['rounds']} rounds, in turns; "
        "medians of the time of an image, and of the pairs' ratios to torchvision. The same detections: of torchvision's, "
        "the share with one of the same class, IoU above 0.99 and a score within 0.01.\n\n"
        f"{content['machine']}\n\n"
    )
    path.with_suffix(".md").write_text(intro + "\n".join(map(text_of, content["tables"])), encoding="utf-8")


if __name__ == "__main__":
    main()
