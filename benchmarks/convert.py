"""How long `detkit convert` takes, and how much memory: a COCO data set of synthetic images in every format.

    python benchmarks/convert.py --images 5000

Each conversion is a process of its own. The images are links to one JPEG file of 640 x 480, so that the disk is not
what is measured; boxes are random, 7 an image as in COCO, with 2 decimals.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("coco", "voc", "yolo", "csv")


def make(root: Path, count: int, boxes: int = 7) -> None:
    """A data set with one set; written row by row, as the benchmark's own memory is not to matter."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (480, 640, 3), np.uint8)
    Image.fromarray(pixels).save(root / "image.jpg")
    names = [f"{number:012d}.jpg" for number in range(1, count + 1)]
    for name in names:
        os.symlink("../image.jpg", root / "train" / name)
    images = [{"id": i, "file_name": name, "width": 640, "height": 480} for i, name in enumerate(names, 1)]
    corners = np.round(rng.uniform(0, 300, (count * boxes, 2)), 2)
    sides = np.round(rng.uniform(5, 170, (count * boxes, 2)), 2)
    annotations = [
        {"id": i, "image_id": i // boxes + 1, "category_id": i % 80 + 1, "iscrowd": 0, "bbox": box}
        for i, box in enumerate(np.hstack([corners, sides]).tolist())
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    (root / "split.json").write_text('{"train": ["*"]}')


def run(root: Path, to: str, output: Path, how: str) -> None:
    """Read, convert, and print how long each took; in a process of its own."""
    import detkit

    data = detkit.data.open(root)
    began = time.perf_counter()
    data.annotations("train")
    read = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    detkit.convert(data, to, str(output), images=how)
    done = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = f"peak {before / 1024:,.0f} MB when read, {after / 1024:,.0f} MB in all"
    print(f"{to:<5} {how}: read in {read - began:.1f} s, converted in {done - read:.1f} s; {memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--how", choices=("link", "copy", "none"), default="link")
    parser.add_argument("--folder", help="where to work; by default a temporary folder")
    parser.add_argument("--run", nargs=2, metavar=("TO", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(Path(options.folder), options.run[0], Path(options.run[1]), options.how)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder, "data")
        make(root, options.images)
        print(f"{options.images:,} images", flush=True)
        for to in FORMATS:
            arguments = ["--folder", str(root), "--how", options.how, "--run", to, str(Path(folder, to))]
            subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
