"""Selective search beside OpenCV's: the same regions, the time, the recall, and images a second on several cores.

    python -m benchmarks.selective_search --data PATH/VOCdevkit/VOC2012 --images 50

Writes benchmarks/results/selective_search.json and the table as .md beside it. OpenCV's contributed modules are
installed into a separate environment in the user's cache folder the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.opencv_contrib import OpenCV
from benchmarks.real_data import machine

BUDGETS = (100, 500, 1000, 2000)


def compare_partitions(opencv: OpenCV, image: np.ndarray, file: str, folder: Path) -> dict[str, bool]:
    """Whether each (colour space, k) gives the same initial regions on both sides."""
    from detkit.proposals.selective_search import parameters_of
    from detkit.proposals.selective_search.colour_spaces import to_colour_space
    from detkit.proposals.selective_search.segmentation import segment

    settings = parameters_of("opencv", "quality")  # those of fast mode are among them
    names = ("hsv", "lab", "gray", "h", "blue", "rgi")
    output = str(folder / "partitions.npy")
    opencv.ask(work="partitions", image=file, ks=settings.ks, output=output)
    same = {}
    for name, theirs in zip(names, np.load(output), strict=True):
        ours = segment(to_colour_space(image, name), settings.ks, settings.sigma, settings.min_sizes)
        for index, k in enumerate(settings.ks):
            same[f"{name} {k:g}"] = bool(np.array_equal(ours.labels(index), theirs[index]))
    return same


def time_both(opencv: OpenCV, image: np.ndarray, file: str, mode: str, folder: Path) -> tuple[dict[str, Any], dict]:
    """Times and numbers of boxes of one search on each side, one after the other; and the boxes."""
    from detkit.proposals import selective_search

    output = str(folder / "boxes.npy")
    theirs = opencv.ask(work="boxes", image=file, mode=mode, output=output)
    began, cpu = time.perf_counter(), time.process_time()
    found = selective_search(image, mode, resize_width=None)
    ours = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    boxes = {"detkit": found.numpy(), "opencv": np.load(output).astype(np.float32)}
    rows = {side: set(map(tuple, array.tolist())) for side, array in boxes.items()}
    counts = {side: len(array) for side, array in boxes.items()}
    common = len(rows["detkit"] & rows["opencv"])
    return {"detkit": ours, "opencv": theirs, "boxes": counts, "common": common}, boxes


def recall(boxes: list[dict[str, np.ndarray]], truth: list[dict[str, np.ndarray]], classes: int) -> dict[str, Any]:
    """Recall and MABO of both sides at equal numbers of boxes; "all" is as many as the side with fewer has."""
    from detkit.evaluation.proposal_recall import proposal_recall

    objects = np.concatenate([t["boxes"] for t in truth]).astype(np.float64)
    labels = np.concatenate([t["labels"] for t in truth]).astype(np.int32)
    ignored = np.concatenate([t["difficult"] | t["crowd"] for t in truth])
    counts = (*BUDGETS, 10**6)
    result: dict[str, Any] = {"objects": int((~ignored).sum())}
    for side in ("detkit", "opencv"):
        equal = [b[side][: min(map(len, b.values()))] for b in boxes]
        flat = np.concatenate(equal).astype(np.float64)
        found = proposal_recall(
            _as_xywh(objects), labels, _offsets([t["boxes"] for t in truth]), _as_xywh(flat), _offsets(equal), classes,
            counts, ignored=ignored,
        )  # fmt: skip
        result[side] = {
            "all" if count == counts[-1] else str(count): {
                "recall_50": float(found.recall_50[i]),
                "recall_70": float(found.recall_70[i]),
                "mabo": float(found.mabo[i]),
            }
            for i, count in enumerate(counts)
        }
    return result


def _as_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _offsets(arrays: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, arrays)])


def throughput(images: list[np.ndarray], rounds: int) -> dict[str, float]:
    """Images a second in fast mode with one thread and with two, in turns, medians of so many rounds."""
    from detkit.proposals import selective_search

    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, taken in seconds.items():
            began = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(partial(selective_search, resize_width=None), images):
                    pass
            taken.append(time.perf_counter() - began)
    return {str(threads): len(images) / statistics.median(taken) for threads, taken in seconds.items()}


def summarise(times: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the images, of one mode."""
    out: dict[str, Any] = {}
    for key in ("seconds", "cpu_seconds"):
        ours, theirs = ([each[side][key] for each in times] for side in ("detkit", "opencv"))
        out[key] = {"detkit": statistics.median(ours), "opencv": statistics.median(theirs)}
        out[f"{key}_ratio"] = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    out["boxes"] = {side: statistics.fmean(each["boxes"][side] for each in times) for side in ("detkit", "opencv")}
    out["common_of_opencvs"] = sum(each["common"] for each in times) / sum(each["boxes"]["opencv"] for each in times)
    return out


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in markdown, the first as the heading, numbers to the right."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return lines


def report(content: dict[str, Any]) -> str:
    """All tables, in markdown."""
    where, data = content["machine"], content["data"]
    lines = ["# Selective search: detkit beside OpenCV", ""]
    lines += [
        f"{data['images']} photographs of {data['name']} {data['split']}, one thread for each side, in turns "
        f"(`python -m benchmarks.selective_search --data PATH/{data['name']} --images {data['images']}`).",
        "",
    ]
    if content["partitions"]:
        equal, names = content["partitions"], list(content["partitions"])
        total = data["images"] * len(names)
        lines += [
            f"Initial regions equal to OpenCV's: {sum(equal.values())} of {total} partitions "
            f"({sum(equal.values()) / total:.1%}). The others differ in regions that have two equally near neighbours.",
            "",
        ]
        ks = sorted({float(name.split()[1]) for name in names})
        rows = [("colour space", *(f"k {k:g}" for k in ks))]
        for space in dict.fromkeys(name.split()[0] for name in names):
            rows.append((space, *(str(equal[f"{space} {k:g}"]) for k in ks)))
        lines += [*table(rows), ""]
    rows = [("", *(f"{mode}, {side}" for mode in content["modes"] for side in ("detkit", "OpenCV")))]
    for key, label in (("cpu_seconds", "CPU seconds an image, median"), ("seconds", "seconds an image, median")):
        rows.append((label, *(f"{m[key][s]:.3f}" for m in content["modes"].values() for s in ("detkit", "opencv"))))
    for key, label in (("cpu_seconds_ratio", "OpenCV's CPU time over ours, median"), ("seconds_ratio", "wall time")):
        rows.append((label, *(text for m in content["modes"].values() for text in (f"{m[key]:.1f}", ""))))
    rows.append(
        ("boxes an image", *(f"{m['boxes'][s]:.0f}" for m in content["modes"].values() for s in ("detkit", "opencv")))
    )
    shares = (f"{100 * m['common_of_opencvs']:.1f} %" for m in content["modes"].values())
    rows.append(("of OpenCV's boxes also ours", *(text for share in shares for text in (share, ""))))
    lines += [*table(rows), ""]
    for mode, found in content["recall"].items():
        lines += [
            f"Recall in {mode} mode of {found['objects']} objects (difficult ones left out), equal numbers of boxes:"
        ]
        rows = [("first boxes", *(f"{m}, {s}" for m in ("IoU 0.5", "IoU 0.7", "MABO") for s in ("detkit", "OpenCV")))]
        for count in found["detkit"]:
            values = (found[s][count][m] for m in ("recall_50", "recall_70", "mabo") for s in ("detkit", "opencv"))
            rows.append((count, *(f"{value:.3f}" for value in values)))
        lines += ["", *table(rows), ""]
    speed = content["images_per_second"]
    if speed:
        lines += [
            f"Images a second in fast mode: {speed['1']:.1f} with one thread, {speed['2']:.1f} with two "
            f"({speed['2'] / speed['1']:.2f} times as many).",
            "",
        ]
    lines += [
        f"{where['date']}: {where['cpu']}, {where['cores']} cores, load {where['load']:.1f} at the end; Python "
        f"{where['python']}, OpenCV {where['opencv']}, its contributed modules {where['opencv_contrib']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a VOC year's folder, as data.path of VOC")
    parser.add_argument("--split", default="val", help="the image set")
    parser.add_argument("--images", type=int, default=50, help="how many images, the set's first")
    parser.add_argument("--modes", nargs="+", default=["fast", "quality"], help="fast, quality or both")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring images a second; 0 leaves it out")
    parser.add_argument("--skip_partitions", action="store_true", help="leave out the comparison of initial regions")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/selective_search.json"))
    options = parser.parse_args()
    import cv2
    import torch

    from detkit.data import VOC
    from detkit.data.image_io import read_image
    from detkit.proposals import selective_search

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = VOC(options.data, val=options.split)
    annotations = data.read(options.split)
    chosen = range(min(options.images, len(annotations)))
    images = [read_image(annotations.path(index)) for index in chosen]
    for mode in options.modes:
        selective_search(images[0], mode)  # compiles, or reads what was compiled
    same: list[dict[str, bool]] = []
    times: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
    boxes: dict[str, list[dict[str, np.ndarray]]] = {mode: [] for mode in options.modes}
    with tempfile.TemporaryDirectory() as temporary, OpenCV(cv2.__version__) as opencv:
        folder, version = Path(temporary), opencv.ask(work="version")["version"]
        file = str(folder / "image.npy")
        for index, image in zip(chosen, images, strict=True):
            np.save(file, image)
            if not options.skip_partitions:
                same.append(compare_partitions(opencv, image, file, folder))
            for mode in options.modes:
                measured, found = time_both(opencv, image, file, mode, folder)
                times[mode].append(measured)
                boxes[mode].append(found)
            last = ", ".join(f"{m} {t[-1]['opencv']['cpu_seconds'] / t[-1]['detkit']['cpu_seconds']:.1f}x"
                             for m, t in times.items())  # fmt: skip
            equal = f"{sum(same[-1].values())} of {len(same[-1])} partitions equal, " if same else ""
            print(f"{annotations.image_id(index)}: {equal}{last}", flush=True)
    truth = [annotations.fields(index) for index in chosen]
    content = {
        "machine": machine() | {"opencv": cv2.__version__, "opencv_contrib": version, "load": os.getloadavg()[0]},
        "data": {"name": Path(options.data).name, "split": options.split, "images": len(images)},
        "partitions": {name: sum(each[name] for each in same) for name in same[0]} if same else {},
        "modes": {mode: summarise(each) for mode, each in times.items()},
        "recall": {mode: recall(each, truth, data.num_classes) for mode, each in boxes.items()},
        "images_per_second": throughput(images, options.rounds) if options.rounds else {},
    }
    text = report(content)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
