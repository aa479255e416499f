"""CPU time of R-CNN's crops: warping beside OpenCV's warpAffine, the network, and what keeping freed memory saves.

    python -m benchmarks.warping --image PHOTO

Takes the boxes of selective search in a photograph (scikit-learn's, or --image) and MobileNetV2 with random weights.
Each side is a process with one thread; the processes run in turns, with and without
`detkit.system.keep_freed_memory`. Writes benchmarks/results/warping.json and the table as .md beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.real_data import machine
from benchmarks.selective_search import table

MEAN, STD = 0.45, 0.225
#: GB of a pass through the network.
MEMORY = (0.05, 1.0)


def photograph(file: str | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if file:
        from detkit.data.image_io import read_image

        return read_image(file)
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").copy()  # it comes read-only


def warp_affine(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The crops of `detkit.features.warp` by cv2.warpAffine, which goes on into the image beyond a crop's own part."""
    import cv2

    from detkit.features import crop_geometry

    pixels = image.permute(1, 2, 0).contiguous().numpy()
    sources, targets = (part.numpy() for part in crop_geometry(boxes, image.shape[1:], size))
    scales = (sources[:, 2:] - sources[:, :2]) / np.maximum(targets[:, 2:] - targets[:, :2], 1)
    crops = torch.empty(len(boxes), 3, size, size, memory_format=torch.channels_last)
    for crop, source, target, scale in zip(crops.permute(0, 2, 3, 1).numpy(), sources, targets, scales, strict=True):
        # From a crop's pixels to the image's, pixel centres at halves.
        shift = source[:2] + (0.5 - target[:2]) * scale - 0.5
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        crop[:] = cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return crops


def cpu_milliseconds(work: Callable[[], object], count: int, rounds: int) -> float:
    """Median CPU time for each of ``count`` crops, after one round that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return 1000 * statistics.median(taken[1:]) / count


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a crop of each kind of work, in this process."""
    import cv2

    from detkit.features import build_crop_network, warp
    from detkit.features.crop_reader import CropReader, CropSettings
    from detkit.proposals import selective_search
    from detkit.system import keep_freed_memory

    if options.side == "kept":
        keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photo = photograph(options.image)
    boxes = selective_search(photo, max_boxes=options.crops)
    image = (torch.from_numpy(photo).permute(2, 0, 1) / 255 - MEAN) / STD
    network = build_crop_network("mobilenet_v2", options.size).eval().to(memory_format=torch.channels_last)
    work: dict[str, Callable[[], object]] = {
        "warp": lambda: [warp(image, some, options.size, channels_last=True) for some in boxes.split(64)],
        "cv2.warpAffine": lambda: [warp_affine(image, some, options.size) for some in boxes.split(64)],
    }
    for memory in MEMORY:
        reader = CropReader(network, CropSettings(options.size, memory=memory, bf16=False), channels_last=True)
        work[f"features, passes of {memory:g} GB"] = lambda reader=reader: reader.read(image, boxes)
    with torch.inference_mode():
        return {name: cpu_milliseconds(call, len(boxes), options.rounds) for name, call in work.items()}


def report(content: dict[str, Any]) -> str:
    """The table, in markdown."""
    where, data = content["machine"], content["data"]
    rows = [("CPU milliseconds a crop", "as glibc does", "freed memory kept")]
    for name in content["sides"]["returned"]:
        rows.append((name, *(f"{content['sides'][side][name]:.2f}" for side in ("returned", "kept"))))
    return "\n".join(
        [
            "# R-CNN's crops: warping, the network, and memory",
            "",
            f"{data['crops']} crops of {data['size']} pixels, context 16, of selective search's boxes in a photograph; "
            "MobileNetV2, float32, one thread. `detkit` keeps freed memory (`detkit.system.keep_freed_memory`).",
            "",
            *table(rows),
            "",
            f"{where['date']}: {where['cpu']}, {where['cores']} cores; Python {where['python']}, "
            f"torch {where['torch']}.",
            "",
        ]
    )


def main() -> None:
    """Run both sides in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="a photograph; scikit-learn's china.jpg without it")
    parser.add_argument("--crops", type=int, default=200, help="how many")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of a crop")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring in a process")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side")
    parser.add_argument("--side", choices=("returned", "kept"), help="measure in this process, and print JSON")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/warping.json"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    turns: dict[str, list[dict[str, float]]] = {"returned": [], "kept": []}
    for _ in range(options.turns):
        for side, results in turns.items():
            command = [sys.executable, "-m", "benchmarks.warping", *sys.argv[1:], "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    sides = {
        side: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for side, results in turns.items()
    }
    content = {"machine": machine(), "data": {"crops": options.crops, "size": options.size}, "sides": sides}
    text = report(content)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
