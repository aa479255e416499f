"""R-CNN's crops beside a loop over OpenCV's warpAffine: 2,000 of 227 pixels, the same boxes, the same batch to fill.

    python -m benchmarks.warping

Takes the boxes of selective search in a photograph (scikit-learn's, or --image). Each side fills the same (N, 3, S, S)
float32 tensor, which is there beforehand; where its values are to lie plane by plane, OpenCV's crops, which it makes
pixel by pixel, are copied there. With more than one thread OpenCV's loop is shared out among Python threads, as ours
is. Writes benchmarks/results/warping.json and the table as .md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.real_data import machine
from benchmarks.selective_search import table

MEAN, STD = 0.45, 0.225
LAYOUTS = ("channels_last", "contiguous")


def photograph(file: str | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    if file:
        from detkit.data.image_io import read_image

        return read_image(file)
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").copy()  # it comes read-only


def proposals(photo: np.ndarray, count: int) -> Tensor:
    """The first so many boxes of selective search, over again where it has fewer."""
    from detkit.proposals import selective_search

    found = selective_search(photo)
    return found.repeat(-(-count // max(len(found), 1)), 1)[:count]


def opencv_loop(image: np.ndarray, boxes: Tensor, size: int, out: Tensor, threads: int) -> None:
    """The crops of `warp`, by cv2.warpAffine, one after the other.

    Args:
        image: (H, W, 3) float32.
        out: (N, 3, size, size) float32, in either memory format.
    """
    import cv2

    from detkit.features import crop_geometry

    sources, targets = (each.numpy() for each in crop_geometry(boxes, image.shape[:2], size))
    # The map from a crop's pixels to the image's, pixel centres at halves.
    scale = (sources[:, 2:] - sources[:, :2]) / np.maximum(targets[:, 2:] - targets[:, :2], 1)
    maps = np.zeros((len(boxes), 2, 3))
    maps[:, 0, 0], maps[:, 1, 1] = scale.T
    maps[:, :, 2] = sources[:, :2] + (0.5 - targets[:, :2]) * scale - 0.5
    flags, pixelwise = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, out.permute(0, 2, 3, 1).numpy()
    in_place = not out.is_contiguous()

    def some(first: int, last: int) -> None:
        for i in range(first, last):
            into = pixelwise[i] if in_place else None
            crop = cv2.warpAffine(image, maps[i], (size, size), dst=into, flags=flags, borderMode=cv2.BORDER_CONSTANT)
            if not in_place:
                pixelwise[i] = crop

    bounds = np.linspace(0, len(boxes), threads + 1).astype(int).tolist()
    if threads == 1:
        some(0, len(boxes))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, bounds[:-1], bounds[1:]))


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall and of the CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Medians of both sides' seconds, and of the ratio of each round."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for work in sides.values():
        work()
    for _ in range(rounds):
        for side, work in sides.items():
            seconds[side].append(clocked(work))
    result: dict[str, Any] = {}
    for kind, name in enumerate(("seconds", "cpu_seconds")):
        result[name] = {side: statistics.median(each[kind] for each in taken) for side, taken in seconds.items()}
        pairs = zip(seconds["detkit"], seconds["opencv"], strict=True)
        result[f"{name}_ratio"] = statistics.median(theirs[kind] / ours[kind] for ours, theirs in pairs)
    return result


def difference(image: Tensor, boxes: Tensor, size: int) -> dict[str, float]:
    """How far OpenCV's crops are from ours, in grey levels.

    Its warpAffine is looked at without the pixels beyond the centres of the source's outermost ones: there it goes on
    into the image around, and we do not. It rounds places to 1/32 of a pixel; its resize does not.
    """
    import cv2

    from detkit.features import crop_geometry, warp

    ours, pixels = warp(image, boxes, size), image.permute(1, 2, 0).contiguous().numpy()
    affine = torch.empty_like(ours)
    opencv_loop(pixels, boxes, size, affine, 1)
    apart, resized = [torch.zeros(0)], 0.0
    geometry = crop_geometry(boxes, image.shape[1:], size)
    for crop, theirs, source, target in zip(ours, affine, *(each.tolist() for each in geometry), strict=True):
        x1, y1, x2, y2 = target
        across, down = (-(-(target[i + 2] - target[i]) // (2 * (source[i + 2] - source[i]))) for i in (0, 1))
        inside = slice(y1 + down, y2 - down), slice(x1 + across, x2 - across)
        apart.append((crop - theirs)[:, *inside].abs().flatten())
        window = pixels[source[1] : source[3], source[0] : source[2]]
        resize = cv2.resize(window, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
        resized = max(resized, float(np.abs(crop[:, y1:y2, x1:x2].permute(1, 2, 0).numpy() - resize).max()))
    levels = torch.cat(apart) * (255 * STD)
    within = (levels <= 1).double().mean()
    return {"largest": float(levels.max()), "within_one": float(within), "resize_largest": resized * 255 * STD}


def measure(photo: np.ndarray, count: int, size: int, rounds: int, threads: list[int]) -> dict[str, Any]:
    """All of it."""
    import cv2

    from detkit.features import warp

    cv2.setNumThreads(1)
    boxes = proposals(photo, count)
    image = (torch.from_numpy(photo).permute(2, 0, 1) / 255 - MEAN) / STD
    interleaved = image.permute(1, 2, 0).contiguous().numpy()
    runs: list[dict[str, Any]] = []
    out = torch.empty(count, 3, size, size)
    for layout in LAYOUTS:
        crops = out.view(count, size, size, 3).permute(0, 3, 1, 2) if layout == "channels_last" else out
        for number in threads:
            torch.set_num_threads(number)
            sides = {
                "opencv": lambda crops=crops, number=number: opencv_loop(interleaved, boxes, size, crops, number),
                "detkit": lambda crops=crops: warp(image, boxes, size, out=crops),
            }
            measured = in_turns(sides, rounds)
            runs.append({"layout": layout, "threads": number, **measured})
            print(f"{layout}, {number} threads: {measured['seconds_ratio']:.2f}x", flush=True)
    half = out.flatten().view(torch.bfloat16)[: out.numel()].view(out.shape)
    for number in threads:
        torch.set_num_threads(number)
        alone = {
            "contiguous, into new memory": lambda: warp(image, boxes, size),
            "contiguous, bfloat16": lambda: warp(image, boxes, size, out=half),
        }
        for layout, work in alone.items():
            taken = [clocked(work) for _ in range(rounds + 1)][1:]
            runs.append({"layout": layout, "threads": number, "detkit": statistics.median(each[0] for each in taken)})
    torch.set_num_threads(1)
    sides_of_boxes = (boxes[:, 2:] - boxes[:, :2]).median(dim=0).values.tolist()
    return {
        "machine": machine() | {"opencv": cv2.__version__, "load": os.getloadavg()[0]},
        "data": {"image": list(photo.shape[:2]), "boxes": count, "size": size, "median_box": sides_of_boxes},
        "runs": runs,
        "difference": difference(image, boxes[: min(count, 500)], size),
    }


def report(content: dict[str, Any]) -> str:
    """The table, in markdown."""
    where, data, apart = content["machine"], content["data"], content["difference"]
    height, width = data["image"]
    lines = ["# R-CNN's crops: detkit beside a loop over cv2.warpAffine", ""]
    lines += [f"{data['boxes']} crops of {data['size']} pixels, context 16, from a photograph of {width} x {height}: "
              f"selective search's boxes, median {data['median_box'][0]:.0f} x {data['median_box'][1]:.0f}. float32, "
              f"into memory that is there; in turns.", ""]  # fmt: skip
    rows: list[tuple[str, ...]] = [("", "detkit, s", "cv2.warpAffine, s", "ratio", "ratio of CPU time")]
    for run in content["runs"]:
        name = f"{run['layout']}, {run['threads']} thread{'s' * (run['threads'] > 1)}"
        if "detkit" in run:
            rows.append((name, f"{run['detkit']:.3f}", "", "", ""))
            continue
        ours, theirs = (run["seconds"][side] for side in ("detkit", "opencv"))
        rows.append(
            (name, f"{ours:.3f}", f"{theirs:.3f}", f"{run['seconds_ratio']:.2f}", f"{run['cpu_seconds_ratio']:.2f}")
        )
    lines += [*table(rows), ""]
    lines += [
        f"Inside the crops {100 * apart['within_one']:.1f} % of the values are within a grey level of warpAffine's, "
        f"which rounds places to 1/32 of a pixel; the farthest is {apart['largest']:.1f} away. The farthest from "
        f"cv2.resize of the same part of the image is {apart['resize_largest']:.5f} away.",
        "",
    ]
    lines += [
        f"{where['date']}: {where['cpu']}, {where['cores']} cores, load {where['load']:.1f} at the end; Python "
        f"{where['python']}, torch {where['torch']}, OpenCV {where['opencv']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="a photograph; scikit-learn's china.jpg without it")
    parser.add_argument("--crops", type=int, default=2000, help="how many")
    parser.add_argument("--size", type=int, default=227, help="pixels a side of a crop")
    parser.add_argument("--rounds", type=int, default=9, help="of measuring")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, on both sides")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/warping.json"))
    options = parser.parse_args()
    content = measure(photograph(options.image), options.crops, options.size, options.rounds, options.threads)
    text = report(content)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
