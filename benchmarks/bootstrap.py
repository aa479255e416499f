"""Bootstrap intervals: seconds and memory at COCO val2017's size, and how often they hold the population's AP.

    python -m benchmarks.bootstrap --output benchmarks/results/bootstrap.md

Coverage: sets are drawn from a made-up population in which some images are harder than others in all of their objects
(`tests/evaluation/simulation.py`); its AP is that of 100,000 images. An interval of 95 % should hold it for 95 % of the
sets. `--sets 20` is a trial.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks import evaluation_data
from benchmarks.real_data import machine
from detkit.evaluation import EvaluationSet, Protocol
from detkit.evaluation.bootstrap import bootstrap
from detkit.evaluation.evaluation_set import offsets_of
from detkit.system import available_cores
from detkit.tools.evaluate import RESAMPLES_FILE
from tests.evaluation.simulation import simulate

CLASSES, IMAGES = 80, 5000
SIZES = (50, 200)  # images of a set
NAMES = ["a", "b", "c"]


def val2017() -> EvaluationSet:
    """A set of val2017's size: 5,000 images, 36,600 objects, 500,000 detections."""
    arrays = evaluation_data.make(IMAGES, CLASSES)
    objects, found = (np.argsort(arrays[key], kind="stable") for key in ("images", "detected_images"))
    offsets = [offsets_of(np.bincount(arrays[key], minlength=IMAGES)) for key in ("images", "detected_images")]
    return EvaluationSet(
        image_ids=arrays["image_ids"].tolist(),
        boxes=arrays["boxes"][objects],
        labels=(arrays["categories"][objects] + 1).astype(np.int32),
        difficult=np.zeros(len(objects), bool),
        crowd=arrays["crowd"][objects],
        area=arrays["area"][objects],
        object_offsets=offsets[0],
        detected_boxes=arrays["detected_boxes"][found],
        scores=arrays["scores"][found],
        detected_labels=(arrays["detected_categories"][found] + 1).astype(np.int32),
        detection_offsets=offsets[1],
    )


def speed(folder: Path) -> list[str]:
    """A row for each protocol: wall and CPU seconds of 1,000 resamples, the memory added, and the interval."""
    s, names = val2017(), [str(k) for k in range(CLASSES)]
    lines = ["| protocol | wall, s | CPU, s | peak memory added, MB | AP | interval |", "|---|---|---|---|---|---|"]
    for name in ("coco", "voc07", "voc10"):
        protocol = Protocol(name)
        bootstrap(s, names, protocol, 1)  # compiles
        before, wall, cpu = _peak(), time.perf_counter(), time.process_time()
        resamples = bootstrap(s, names, protocol)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        low, high = resamples.intervals()["map"]
        value = protocol.evaluate(s, CLASSES)["map"]
        lines.append(
            f"| {name} | {wall:.1f} | {cpu:.1f} | {_peak() - before:.0f} | {value:.4f} | {low:.4f}, {high:.4f} |"
        )
    path = folder / RESAMPLES_FILE
    resamples.save(path)
    lines += ["", f"`{RESAMPLES_FILE}`: {path.stat().st_size / 1000:.0f} kB."]
    path.unlink()
    return lines


def coverage(sets: int) -> list[str]:
    """A row for each size of a set and protocol: the share of `sets` sets whose interval holds the population's AP."""
    lines = ["| images | number | population | mean width | held | below | above |", "|---|---|---|---|---|---|---|"]
    protocols = {"AP": Protocol(), "AP50": Protocol(iou_thresholds=[0.5]), "VOC07": Protocol("voc07")}
    population = simulate(100_000, seed=1)
    truth = {name: protocol.evaluate(population, 3)["map"] for name, protocol in protocols.items()}
    for images in SIZES:
        for name, protocol in protocols.items():
            drawn = (simulate(images, seed=1000 + number) for number in range(sets))
            found = [bootstrap(each, NAMES, protocol).intervals()["map"] for each in drawn]
            low, high = np.array(found).T
            held, below, above = (low <= truth[name]) & (truth[name] <= high), high < truth[name], low > truth[name]
            shares = " | ".join(f"{100 * each.mean():.1f} %" for each in (held, below, above))
            lines.append(f"| {images} | {name} | {truth[name]:.3f} | {(high - low).mean():.3f} | {shares} |")
            print(lines[-1], flush=True)
    return lines


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=200)
    arguments = parser.parse_args()
    facts = machine()
    rows = speed(arguments.output.parent)
    print("\n".join(rows), flush=True)
    text = [
        "# Bootstrap intervals",
        "",
        f"{facts.get('cpu', 'CPU')}, {available_cores()} cores, numpy {np.__version__}.",
        "",
        "## 1,000 resamples at val2017's size",
        "",
        f"{IMAGES:,} images, 36,600 objects, 500,000 detections, {CLASSES} classes, made up (`evaluation_data.py`).",
        "",
        *rows,
        "",
        "## Coverage",
        "",
        f"{arguments.sets} sets of each size; “below” is an interval that ends below the population's AP.",
        "",
        *coverage(arguments.sets),
        "",
    ]
    arguments.output.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
