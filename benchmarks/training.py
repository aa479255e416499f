"""A training step and data loading on one core, beside torchvision and albumentations.

    python -m benchmarks.training --data PATH/voc-animals

Steps: detkit's and torchvision's Faster R-CNN with the same weights and images, forward, backward and SGD, in pairs
that take turns to be first. Loading: the same JPEG files with their boxes, decoded, flipped half of the time, resized
and normalised. One thread; CPU time, which other programs lengthen less than the wall time; medians. Writes
benchmarks/results/training.json and the tables as .md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import torch

from benchmarks.pairs import Step, build_pair, images, sides_of
from benchmarks.real_data import machine
from benchmarks.selective_search import table
from detkit.data import VOC
from detkit.features.crop_reader import has_bf16
from detkit.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImageSettings, Preprocessing
from detkit.system import keep_freed_memory

CPU = torch.device("cpu")
#: Name in the table -> torchvision's name, shorter and longer side.
DETECTORS = {
    "R50-FPN, 600 px": ("fasterrcnn_resnet50_fpn", 600, 1000),
    "MobileNetV3-FPN, 600 px": ("fasterrcnn_mobilenet_v3_large_fpn", 600, 1000),
    "MobileNetV3-FPN, 320 px": ("fasterrcnn_mobilenet_v3_large_320_fpn", 320, 640),
}
MIN_SIZE, MAX_SIZE = 600, 1000


def in_pairs(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each work in each round, in turns, after a round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        names = list(works) if i % 2 else list(reversed(works))
        for name in names:
            began = time.process_time()
            works[name]()
            taken[name].append(time.process_time() - began)
    return {name: values[1:] for name, values in taken.items()}


def steps(rounds: int, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Median CPU seconds of a training step of one image, by detector and precision, and the medians' ratio."""
    found: dict[str, dict[str, float]] = {}
    for name in names:
        arch, shorter, longer = DETECTORS[name]
        pair = build_pair(arch, min_size=shorter, max_size=longer)
        sides = sides_of(*pair, images(1, 480, 640), CPU)
        for precision in ["float32", *(["bfloat16"] if has_bf16(CPU) else [])]:
            works = {side: Step(each, precision == "bfloat16") for side, each in sides.items()}
            found[f"{name}, {precision}"] = ratios(in_pairs(works, rounds))
            print(f"{name}, {precision}: {found[f'{name}, {precision}']}", flush=True)
    return found


def ratios(taken: dict[str, list[float]]) -> dict[str, float]:
    """The medians, and the median, least and largest ratio of the pairs: torchvision's time by ours."""
    pairs = [theirs / ours for ours, theirs in zip(taken["detkit"], taken["torchvision"], strict=True)]
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return medians | {"speed": statistics.median(pairs), "least": min(pairs), "largest": max(pairs)}


def loading(data: str, count: int, rounds: int) -> dict[str, float]:
    """Images a second and core of each way to load the first training photographs of a VOC data set."""
    import albumentations
    import cv2
    from albumentations.pytorch import ToTensorV2
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2
    from torchvision.tv_tensors import BoundingBoxes

    cv2.setNumThreads(0)
    dataset = VOC(data, num_workers=0).dataset("train")
    count = min(count, len(dataset))
    fields = [dataset.annotations.fields(i) for i in range(count)]
    paths = [dataset.annotations.path(i) for i in range(count)]
    prepare = Preprocessing(ImageSettings(min_size=MIN_SIZE, max_size=MAX_SIZE))

    def ours(i: int) -> None:
        dataset[i, i]

    def ours_to_the_network(i: int) -> None:
        sample = dataset[i, i]
        batch = prepare([sample["image"]])
        batch.to_batch(sample["boxes"], 0)

    compose = albumentations.Compose(
        [
            albumentations.SmallestMaxSize(MIN_SIZE),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ToTensorV2(),
        ],
        bbox_params=albumentations.BboxParams(format="pascal_voc", label_fields=["labels"]),
    )

    def by_albumentations(i: int) -> None:
        image = cv2.cvtColor(cv2.imread(paths[i]), cv2.COLOR_BGR2RGB)
        compose(image=image, bboxes=fields[i]["boxes"], labels=fields[i]["labels"])

    transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Resize(MIN_SIZE, max_size=MAX_SIZE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def by_torchvision(i: int) -> None:
        image = decode_image(paths[i], ImageReadMode.RGB)
        boxes = torch.from_numpy(fields[i]["boxes"])
        transforms(image, {"boxes": BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[1:])})

    ways = {
        "detkit, uint8 as the loader hands it out": ours,
        "detkit, to the network's tensor": ours_to_the_network,
        "albumentations": by_albumentations,
        "torchvision v2": by_torchvision,
    }
    works = {name: lambda way=way: [way(i) for i in range(count)] for name, way in ways.items()}
    return {name: count / statistics.median(taken) for name, taken in in_pairs(works, rounds).items()}


def report(content: dict[str, Any]) -> str:
    """The tables, as markdown."""
    where = content["machine"]
    lines = ["# Training on one core: a step, and loading", ""]
    if content["steps"]:
        rows = [("CPU seconds a step of one image", "detkit", "torchvision", "speed", "of the pairs")]
        for name, found in content["steps"].items():
            spread = f"{found['least']:.2f} to {found['largest']:.2f}"
            rows.append(
                (name, f"{found['detkit']:.2f}", f"{found['torchvision']:.2f}", f"{found['speed']:.2f}x", spread)
            )
        about = (
            f"Median of {content['rounds']} pairs after one that is not counted; the speed is torchvision's time by "
            "detkit's. Weights, image (480 x 640), frozen batch norms and learning stages are the same; detkit in "
            "channels_last, as its configs have it. detkit converts the image from uint8, torchvision is given floats."
        )
        lines += ["## A step", "", *table(rows), "", about, ""]
    if content["loading"]:
        base = content["loading"]["albumentations"]
        rows = [("", "images/s and core", "albumentations' speed")]
        rows += [(name, f"{speed:.0f}", f"{speed / base:.2f}x") for name, speed in content["loading"].items()]
        about = (
            f"{content['images']} photographs, {content['loading_rounds']} rounds. All but the first row end with a "
            f"normalised float tensor, shorter side {MIN_SIZE}. detkit's loader hands out uint8 of the image's own "
            "size; resizing and normalising are the detector's, on its device: on a CPU the second row counts (the "
            "steps above contain its part of it), on a GPU the first."
        )
        lines += ["## Loading", "", *table(rows), "", about, ""]
    lines += [
        f"{where['date']}: {where['cpu']}, {where['cores']} cores, one thread, load {where['load'] or 0:.1f} at the "
        f"start: other programs ran at the same time. Python {where['python']}, torch {where['torch']}, torchvision "
        f"{where['torchvision']}; bfloat16 in hardware: {'yes' if content['bf16'] else 'no'}.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a VOC data set; without it loading is not measured")
    parser.add_argument("--images", type=int, default=100, help="that are loaded")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of steps")
    parser.add_argument("--loading_rounds", type=int, default=5)
    parser.add_argument("--detectors", nargs="*", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.json"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # for both sides: they share the process
    content: dict[str, Any] = {
        "machine": machine(),
        "bf16": has_bf16(CPU),
        "rounds": options.rounds,
        "images": options.images,
        "loading_rounds": options.loading_rounds,
        "loading": loading(options.data, options.images, options.loading_rounds) if options.data else {},
        "steps": steps(options.rounds, options.detectors),
    }
    text = report(content)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return content


if __name__ == "__main__":
    main()
