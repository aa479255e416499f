"""One contender of `benchmarks.evaluation` in its own process: its time and memory.

python -m benchmarks.evaluation_contenders detkit --set FOLDER --calls 3 --output detkit.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation_data import Arrays, annotations, load, results

TWELVE = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
TWELVE += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
BATCH = 8
#: Seconds of a contender's calls after which there are no further ones.
ENOUGH = 10.0

Evaluate = Callable[[], list[float]]
Contender = tuple[Callable[[], Any], Callable[[Any], list[float]]]
"""A function that is measured as loading, and one that is measured as evaluating its result."""


def detkit(arrays: Arrays) -> Contender:
    """Flat arrays, sorted by image, then the numbers."""
    from detkit.evaluation.evaluation_files import Detected, Objects, assemble
    from detkit.evaluation.protocol import Protocol

    a = arrays
    protocol, classes = Protocol("coco"), len(a["category_ids"])
    labels, detected_labels = ((a[name] + 1).astype(np.int32) for name in ("categories", "detected_categories"))
    objects = Objects(a["images"], a["boxes"], labels, np.zeros_like(a["crowd"]), a["crowd"], a["area"])
    detected = Detected(a["detected_images"], a["detected_boxes"], a["scores"], detected_labels)

    def evaluate(evaluation_set: Any) -> list[float]:
        return _twelve(protocol.evaluate(evaluation_set, classes))

    return lambda: assemble(a["image_ids"].tolist(), objects, detected), evaluate


def pycocotools(arrays: Arrays) -> Contender:
    """Dictionaries in memory, `loadRes`, then evaluate, accumulate and summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = annotations(arrays)
    truth.createIndex()
    rows = results(arrays)

    def evaluate(found: Any) -> list[float]:
        run = COCOeval(truth, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return _no_minus(run.stats)

    return lambda: truth.loadRes(rows), evaluate


def faster_coco_eval(arrays: Arrays) -> Contender:
    """The same by faster-coco-eval: matching and accumulation in one call into C++, its default."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(annotations(arrays))
    rows = results(arrays)

    def evaluate(found: Any) -> list[float]:
        run = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
        run.run()
        return _no_minus(run.stats[:12])

    return lambda: truth.loadRes(rows), evaluate


def hotcoco(arrays: Arrays) -> Contender:
    """hotcoco: columns for the ground truth, a matrix for the detections."""
    from hotcoco import COCO, COCOeval

    content = annotations(arrays)
    ids, categories = arrays["image_ids"], arrays["category_ids"]
    truth = COCO.from_arrays(
        content["images"],
        content["categories"],
        ids[arrays["images"]],
        categories[arrays["categories"]],
        arrays["boxes"],
        area=arrays["area"],
        iscrowd=arrays["crowd"],
    )
    matrix = _matrix(arrays)

    def evaluate(found: Any) -> list[float]:
        run = COCOeval(truth, found, "bbox")
        run.run()
        return _no_minus(np.array(run.stats[:12]))

    return lambda: truth.load_res(matrix), evaluate


def ultrafast_pycocotools(arrays: Arrays) -> Contender:
    """ultrafast-pycocotools: a dictionary for the ground truth, a matrix for the detections."""
    from ultrafast_pycocotools import COCO, COCOeval

    truth, matrix = COCO(annotations(arrays), verbose=False), _matrix(arrays)

    def evaluate(found: Any) -> list[float]:
        run = COCOeval(truth, found, "bbox")
        run.run()
        return _no_minus(np.array(run.stats[:12]))

    return lambda: truth.loadRes(matrix), evaluate


def vernier(arrays: Arrays) -> Contender:
    """vernier: a parsed set for the ground truth, a matrix for the detections, on all cores."""
    from vernier.instance import Bbox, CocoDataset, Evaluator

    truth = CocoDataset.from_json(json.dumps(annotations(arrays)).encode())
    evaluator = Evaluator(iou=Bbox(), parity_mode="strict")

    def evaluate(found: Any) -> list[float]:
        return _no_minus(np.array(evaluator.evaluate(truth, found, num_threads=os.cpu_count()).stats[:12]))

    return lambda: _matrix(arrays), evaluate


def hotcoco_stream(arrays: Arrays) -> Contender:
    """hotcoco's StreamingEval: the images, their objects as dictionaries, and a matrix, for each batch."""
    from hotcoco import StreamingEval

    content, matrix = annotations(arrays), _matrix(arrays)
    count = len(content["images"])
    cuts, found_cuts = (
        np.searchsorted(arrays[name], np.arange(0, count + BATCH, BATCH)) for name in ("images", "detected_images")
    )
    batches = [
        (
            content["images"][start : start + BATCH],
            content["annotations"][cuts[i] : cuts[i + 1]],
            matrix[found_cuts[i] : found_cuts[i + 1]],
        )
        for i, start in enumerate(range(0, count, BATCH))
    ]

    def evaluate(_: None) -> list[float]:
        metric = StreamingEval(content["categories"])
        for batch in batches:
            metric.update(*batch)
        run = metric.finalize()
        run.accumulate()
        run.summarize()
        return _no_minus(np.array(run.stats[:12]))

    return lambda: None, evaluate


def vernier_stream(arrays: Arrays) -> Contender:
    """vernier's background evaluator, which knows the ground truth: arrays for each image; fastest with one thread."""
    from vernier.instance import Bbox, CocoDataset, Evaluator

    truth = CocoDataset.from_json(json.dumps(annotations(arrays)).encode())
    evaluator = Evaluator(iou=Bbox(), parity_mode="strict")
    ids = arrays["image_ids"].tolist()
    cuts = np.searchsorted(arrays["detected_images"], np.arange(len(ids) + 1))
    labels = arrays["category_ids"][arrays["detected_categories"]].astype(np.int64)
    images = [
        {
            "image_id": image_id,
            "boxes": arrays["detected_boxes"][begin:end],
            "scores": arrays["scores"][begin:end],
            "labels": labels[begin:end],
        }
        for image_id, begin, end in zip(ids, cuts[:-1], cuts[1:], strict=True)
    ]

    def evaluate(_: None) -> list[float]:
        with evaluator.background(truth, worker_nice=0) as metric:
            for start in range(0, len(images), BATCH):
                metric.submit(images[start : start + BATCH])
            return _no_minus(np.array(metric.finalize().stats[:12]))

    return lambda: None, evaluate


def _matrix(arrays: Arrays) -> np.ndarray:
    """(D, 7) float64: image id, box, score and category id of each detection."""
    ids = arrays["image_ids"][arrays["detected_images"]]
    categories = arrays["category_ids"][arrays["detected_categories"]]
    return np.column_stack((ids, arrays["detected_boxes"], arrays["scores"], categories)).astype(np.float64)


def detkit_stream(arrays: Arrays) -> Contender:
    """`update` with batches of eight, one `compute`."""
    from detkit.evaluation import MeanAveragePrecision

    names = [str(category) for category in arrays["category_ids"]]
    return _stream(arrays, lambda: MeanAveragePrecision("coco", class_names=names), first_label=1)


def torchmetrics_pycocotools(arrays: Arrays) -> Contender:
    """The same by torchmetrics, over pycocotools."""
    return _torchmetrics(arrays, "pycocotools")


def torchmetrics_faster_coco_eval(arrays: Arrays) -> Contender:
    """The same by torchmetrics, over faster-coco-eval."""
    return _torchmetrics(arrays, "faster_coco_eval")


CONTENDERS = {
    each.__name__: each
    for each in (
        detkit,
        hotcoco,
        ultrafast_pycocotools,
        vernier,
        faster_coco_eval,
        pycocotools,
        detkit_stream,
        hotcoco_stream,
        vernier_stream,
        torchmetrics_faster_coco_eval,
        torchmetrics_pycocotools,
    )
}


def _torchmetrics(arrays: Arrays, backend: str) -> Contender:
    from torchmetrics.detection import MeanAveragePrecision

    return _stream(arrays, lambda: MeanAveragePrecision("xyxy", "bbox", backend=backend), first_label=0)


def _stream(arrays: Arrays, make_metric: Callable[[], Any], first_label: int) -> Contender:
    """Batches of tensors as a detector gives them, float64 so that the numbers are those of the files."""
    batches = list(_batches(arrays, first_label))

    def evaluate(_: None) -> list[float]:
        metric = make_metric()
        for found, truth in batches:
            metric.update(found, truth)
        return _twelve(metric.compute())

    return lambda: None, evaluate


def _batches(arrays: Arrays, first_label: int) -> Iterator[tuple[list[dict], list[dict]]]:
    import torch

    def tensors(prefix: str, **more: str) -> list[dict[str, Any]]:
        boxes = arrays[f"{prefix}boxes"].copy()
        boxes[:, 2:] += boxes[:, :2]
        fields = {"boxes": boxes, "labels": arrays[f"{prefix}categories"] + first_label}
        fields |= {name: arrays[source] for name, source in more.items()}
        cuts = np.searchsorted(arrays[f"{prefix}images"], np.arange(1, len(ids)))
        parts = {name: np.split(values, cuts) for name, values in fields.items()}
        return [{name: torch.tensor(parts[name][i]) for name in parts} for i in range(len(ids))]

    ids = arrays["image_ids"].tolist()
    found, truth = tensors("detected_", scores="scores"), tensors("", area="area")
    for flags, target, image_id in zip(_crowds(arrays), truth, ids, strict=True):
        target["iscrowd" if first_label == 0 else "crowd"] = torch.tensor(flags)
        if first_label:
            target["image_id"] = image_id
    for start in range(0, len(ids), BATCH):
        yield found[start : start + BATCH], truth[start : start + BATCH]


def _crowds(arrays: Arrays) -> list[np.ndarray]:
    count = len(arrays["image_ids"])
    return np.split(arrays["crowd"].astype(np.int64), np.searchsorted(arrays["images"], np.arange(1, count)))


def _twelve(numbers: dict[str, Any]) -> list[float]:
    return _no_minus(np.array([float(numbers[name]) for name in TWELVE]))


def _no_minus(numbers: np.ndarray) -> list[float]:
    """None for undefined numbers: -1 of the other evaluators, NaN of detkit."""
    return [None if value == -1 or np.isnan(value) else float(value) for value in numbers]


def memory() -> tuple[float, float]:
    """This process's memory now, and its peak since `forget_peak` or its start, in MB."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
        return most, most


def forget_peak() -> None:
    """Resets the peak, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(contender: Contender, calls: int) -> dict[str, Any]:
    """Loads once and evaluates `calls` times: seconds, the memory before and its peak, and the twelve numbers."""
    load_set, evaluate = contender
    before, peak = memory()[0], 0.0
    forget_peak()
    seconds: dict[str, list[float]] = {"load": [], "wall": [], "cpu": []}
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        loaded = load_set()
        seconds["load"].append(time.perf_counter() - began)
        for call in range(calls):
            if call > 1 and sum(seconds["wall"]) > ENOUGH:
                break
            began, cpu = time.perf_counter(), time.process_time()
            numbers = evaluate(loaded)
            seconds["wall"].append(time.perf_counter() - began)
            seconds["cpu"].append(time.process_time() - cpu)
            peak = peak or memory()[1]  # of the first: later ones may find what earlier ones have not let go of
    return {**seconds, "memory_before": before, "memory_peak": peak, "numbers": numbers}


def main() -> None:
    """Measure one contender and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=list(CONTENDERS))
    parser.add_argument("--set", required=True, type=Path, help="folder with set.npz")
    parser.add_argument("--calls", type=int, default=1, help="evaluations in this process (default: 1)")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the result")
    options = parser.parse_args()
    contender = CONTENDERS[options.contender](load(options.set))
    options.output.write_text(json.dumps(measure(contender, options.calls)), encoding="utf-8")


if __name__ == "__main__":
    main()
