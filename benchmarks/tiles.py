"""What `--tiles` finds: mosaics of the images of a data set, detected whole and by tiles, beside the images alone.

    python -m benchmarks.tiles --data ../shared/data/coco128 --checkpoint runs/custom_voc

Images are pasted into cells of mosaics at random offsets, at their own size. Recall is the share of all objects that a
detection of their class, with a score of at least 0.05, overlaps by an IoU of 0.5 or more, each detection once. The
detector's size for tiles is set so that objects have about the size that they have in the images alone.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CELLS, SCORE = 3000, 4, 0.05


def make_mosaics(data: str, folder: Path, count: int) -> list[list[tuple[int, tuple[int, int]]]]:
    """Write the mosaics and their annotations; returns the images of each and their offsets."""
    import detkit

    whole = detkit.data.open(data, split=[1.0, 0.0, 0.0]).annotations("train")
    rng = np.random.default_rng(0)
    cell = SIDE // CELLS
    placed = []
    for number in range(count):
        page = Image.new("RGB", (SIDE, SIDE), (124, 116, 104))
        parts = []
        for place, index in enumerate(rng.choice(len(whole), CELLS**2, replace=False).tolist()):
            image = Image.fromarray(whole.image(index))
            free = np.array([cell - image.width, cell - image.height])
            x, y = rng.integers(0, np.maximum(free, 0) + 1).tolist()
            x, y = x + place % CELLS * cell, y + place // CELLS * cell
            page.paste(image, (x, y))
            parts.append((index, (x, y)))
        page.save(folder / f"{number:02d}.png")
        placed.append(parts)
    return placed


def recall(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], truth: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The share of the objects that are found.

    Args:
        found: boxes, scores and labels of each image.
        truth: boxes and labels of each image.
    """
    import torch

    from detkit.boxes import iou

    hits = total = 0
    for (boxes, scores, labels), (objects, classes) in zip(found, truth, strict=True):
        total += len(objects)
        taken = np.zeros(len(objects), bool)
        overlaps = iou(torch.as_tensor(boxes).reshape(-1, 4), torch.as_tensor(objects).reshape(-1, 4)).numpy()
        for row in np.argsort(-scores):
            fits = (overlaps[row] >= 0.5) & (classes == labels[row]) & ~taken if len(objects) else np.zeros(0, bool)
            if fits.any():
                taken[np.argmax(np.where(fits, overlaps[row], -1))] = True
        hits += int(taken.sum())
    return hits / max(total, 1)


def detect(checkpoint: str, paths: list[str], tiles: int | None, scale: float) -> tuple[list, float, float]:
    """Boxes, scores and labels of each image, seconds an image, and the peak memory of this process in MB."""
    import detkit

    model = detkit.load(checkpoint)
    if tiles is not None:
        size = round(tiles * scale)
        model.preprocessing.settings = replace(model.preprocessing.settings, min_size=size, max_size=size)
    began = time.perf_counter()
    found = [model.predict(path, score_threshold=SCORE, tiles=tiles) for path in paths]
    seconds = (time.perf_counter() - began) / len(paths)
    rows = [tuple(each[name].numpy() for name in ("boxes", "scores", "labels")) for each in found]
    return rows, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--mosaics", type=int, default=20)
    parser.add_argument("--tiles", type=int, default=800)
    parser.add_argument("--scale", type=float, default=320 / 480, help="of the images alone, once resized")
    given = parser.parse_args()
    import detkit

    whole = detkit.data.open(given.data, split=[1.0, 0.0, 0.0]).annotations("train")
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        placed = make_mosaics(given.data, Path(name), given.mosaics)
        print(f"{given.mosaics} mosaics of {SIDE} x {SIDE}, made in {time.perf_counter() - began:.0f} s", flush=True)
        mosaics = sorted(str(path) for path in Path(name).glob("*.png"))
        alone, truth_alone, truth = [], [], []
        for parts in placed:
            boxes, labels = [], []
            for index, (x, y) in parts:
                fields = whole.fields(index)
                keep = ~fields["crowd"]
                alone.append(whole.path(index))
                truth_alone.append((fields["boxes"][keep], fields["labels"][keep]))
                boxes.append(fields["boxes"][keep] + np.array([x, y, x, y], np.float32))
                labels.append(fields["labels"][keep])
            truth.append((np.concatenate(boxes), np.concatenate(labels)))
        print("| | recall at IoU 0.5 | seconds an image | peak memory |\n|---|---|---|---|", flush=True)
        runs = (
            ("the images alone", alone, truth_alone, None),
            ("mosaics, whole", mosaics, truth, None),
            (f"mosaics, tiles of {given.tiles}", mosaics, truth, given.tiles),
        )
        for title, paths, objects, tiles in runs:
            with get_context("spawn").Pool(1) as pool:  # whose memory is its own
                rows, seconds, memory = pool.apply(detect, (given.checkpoint, paths, tiles, given.scale))
            print(f"| {title} | {recall(rows, objects):.3f} | {seconds:.2f} | {memory:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
