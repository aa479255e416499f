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
from typing import Any, NamedTuple

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
from detkit.tools.benchmark.report import machine_text

TORCHVISION = "torchvision"
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


class Exported(NamedTuple):
    """One architecture's detectors, and their files."""

    arch: str
    sizes: Mapping[str, int]
    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / name

    def write(self, photos: Sequence[Path]) -> None:
        """All files; the photos are for the ranges of 8-bit integers."""
        ours, theirs = build_pair(self.arch, **self.sizes)
        ours.eval().requires_grad_(False)
        description = describe(ours, "benchmark")
        write_onnx(trace(DetectionGraph(ours)), description, self.file("ours.onnx"))
        convert_onnx(self.file("ours.onnx"), description, self.file("ours.xml"))
        fold_batch_norms(ours)
        write_onnx(trace(DetectionGraph(ours)), description, self.file("folded.onnx"))
        quantize(self.file("folded.onnx"), [str(photo) for photo in photos], description, self.file("int8.onnx"))
        write_legacy(theirs.eval().requires_grad_(False), self.file("theirs.onnx"))
        write_network(Network(ours).eval(), regions_of(ours), self.file("network.onnx"))

    def ways(self, threads: int) -> dict[str, Predict]:
        """Every way to run the detector, by its name in the table."""
        ours, theirs = (each.eval().requires_grad_(False) for each in build_pair(self.arch, **self.sizes))
        optimized = build_pair(self.arch, **self.sizes)[0]
        optimize_for_inference(optimized)

        @torch.inference_mode()
        def by_torchvision(image: np.ndarray) -> Mapping[str, Tensor]:
            return theirs([as_image(image) / 255])[0]

        found: dict[str, Predict] = {TORCHVISION: by_torchvision, "detkit": ours.predict}
        found["detkit, optimized"] = optimized.predict
        if has_bf16(torch.device("cpu")):
            found["detkit, optimized, bfloat16"] = _in_bf16(optimized)
        found["torchvision's own ONNX, ONNX Runtime"] = _legacy(self.file("theirs.onnx"), threads)
        for name, file in (
            ("detkit, ONNX Runtime", "ours.onnx"),
            ("detkit, OpenVINO", "ours.xml"),
            ("detkit in 8 bits, ONNX Runtime", "int8.onnx"),
        ):
            found[name] = ExportedModel(self.file(file), threads=threads).predict
        return found | _bare(optimized, self.file("network.onnx"), threads)


def _in_bf16(detector: detkit.FasterRCNN) -> Predict:
    def predict(image: np.ndarray) -> Mapping[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return detector.predict(image)

    return predict


def write_legacy(theirs: nn.Module, file: Path) -> None:
    """torchvision's detector by the exporter that it was written for, for any size of image."""
    torch.onnx.export(
        theirs,
        ([torch.rand(3, 375, 500)],),
        str(file),
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["boxes", "labels", "scores"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )


def _legacy(file: Path, threads: int) -> Predict:
    names, session = ["boxes", "labels", "scores"], _session(file, threads)

    def predict(image: np.ndarray) -> Mapping[str, Any]:
        planar = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        return dict(zip(names, session.run(names, {"image": planar}), strict=True))

    return predict


def regions_of(detector: detkit.FasterRCNN) -> Tensor:
    """As many pooled regions as the detector has proposals."""
    size, channels = detector.roi_heads.pooler.output_size, detector.backbone.channels[0]
    return torch.randn(detector.rpn.settings.post_nms[1], channels, size, size)


def write_network(network: Network, regions: Tensor, file: Path) -> None:
    """The layers alone as ONNX, for any size of image."""
    sides = {side: 32 * torch.export.Dim(f"cells{side}", min=2, max=64) for side in (2, 3)}
    example = torch.rand(1, 3, 320, 416)
    program = torch.export.export(network, (example, regions), dynamic_shapes=(sides, None), strict=False)
    torch.onnx.export(program, (), str(file), dynamo=True, input_names=["images", "regions"], verbose=False)


def _bare(optimized: detkit.FasterRCNN, file: Path, threads: int) -> dict[str, Predict]:
    """The layers alone; a photograph's tensor is made when it is seen for the first time."""
    network, session, plain = Network(optimized).eval(), _session(file, threads), regions_of(optimized)
    regions = plain.contiguous(memory_format=torch.channels_last)
    seen: dict[int, Tensor] = {}

    def tensor_of(image: np.ndarray) -> Tensor:
        if id(image) not in seen:
            seen[id(image)] = optimized.preprocessing([as_image(image)]).tensor
        return seen[id(image)]

    @torch.inference_mode()
    def by_torch(image: np.ndarray) -> Mapping[str, Any]:
        network(tensor_of(image), regions)
        return {}

    def by_onnx(image: np.ndarray) -> Mapping[str, Any]:
        session.run(None, {"images": tensor_of(image).contiguous().numpy(), "regions": plain.numpy()})
        return {}

    return {BARE: by_torch, BARE_ONNX: by_onnx}


def _session(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def measure(works: Mapping[str, Predict], images: Sequence[np.ndarray], rounds: int) -> list[dict[str, Any]]:
    """A row for each way: milliseconds, times as fast as torchvision, and whether it finds the same."""
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
        with TemporaryDirectory() as folder:
            exported = Exported(arch, {"min_size": shorter, "max_size": longer}, Path(folder))
            exported.write(files[:CALIBRATION])
            for threads in options.threads:
                torch.set_num_threads(threads)
                rows = measure(exported.ways(threads), images, options.rounds)
                content["tables"].append({"detector": name, "threads": threads, "rows": rows})
                print(text_of(content["tables"][-1]), flush=True)
                write(content, Path(options.output))
    return content


def text_of(found: Mapping[str, Any]) -> str:
    """One detector's table."""
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    rows = [("", "CPU ms", "wall ms", "speed, CPU", "speed, wall", "same detections")]
    for row in found["rows"]:
        same = "" if row["same"] is None else f"{100 * row['same']:.1f} %"
        speeds = [f"{row[name]:.2f}x" for name in ("speed", "speed_by_wall")]
        rows.append((row["name"], f"{row['cpu_ms']:.0f}", f"{row['wall_ms']:.0f}", *speeds, same))
    return "\n".join([f"## {found['detector']}, {threads}", "", *table(rows), ""])


def write(content: Mapping[str, Any], path: Path) -> None:
    """The JSON file, and the tables beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    intro = (
        "# Detection on a CPU\n\n"
        f"`python -m benchmarks.inference --data PATH`: {content['photos']} photographs, {content['rounds']} rounds, "
        "in turns; medians of an image's time, and of the pairs' ratios to torchvision. The same detections: of "
        "torchvision's, the share with one of the same class, IoU above 0.99 and a score within 0.01.\n\n"
        f"{machine_text(content['machine'])}\n\n"
    )
    path.with_suffix(".md").write_text(intro + "\n".join(map(text_of, content["tables"])), encoding="utf-8")


if __name__ == "__main__":
    main()
