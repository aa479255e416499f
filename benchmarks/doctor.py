"""How long `detkit doctor` takes: 5,000 synthetic photographs of 640 x 480 in COCO's format, without a fault.

python benchmarks/doctor.py --images 5000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

BOXES = 5  # an image


def draw(folder: Path, number: int) -> None:
    """A picture of blurred colours and noise, different for each number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(int) + rng.integers(-8, 8, (480, 640, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)


def make(folder: Path, count: int) -> None:
    """The pictures, with boxes at random."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(draw, folder), range(count), chunksize=50))
    rng = np.random.default_rng(0)
    corners, sides = rng.integers(0, 350, (count * BOXES, 2)), rng.integers(20, 120, (count * BOXES, 2))
    images = [{"id": i + 1, "file_name": f"{i:05d}.jpg", "width": 640, "height": 480} for i in range(count)]
    annotations = [
        {"id": i + 1, "image_id": i // BOXES + 1, "category_id": 1, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(np.hstack([corners, sides]).tolist())
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "annotations.json").write_text(json.dumps(content))


def main() -> None:
    """Make the data set, and time the command as a user calls it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), given.images)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "detkit", "doctor", name], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
    print(done.stdout, end="")
    print(f"{given.images:,} images in {seconds:.1f} s, exit code {done.returncode}")


if __name__ == "__main__":
    main()
