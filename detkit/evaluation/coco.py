"""The COCO protocol: COCOeval's own computation, fed from arrays instead of JSON files.

What COCOeval cannot do is `difficult`: it overwrites each object's `ignore` with `iscrowd`. Here
an object is ignored if it is either, but only crowds are compared by the intersection over
the detection's area and may be matched again and again. A difficult object behaves as one
outside the range of areas does: matched by IoU, once, and neither hit nor miss.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .records import ImageRecord

AREAS = ("all", "small", "medium", "large")


def evaluate(images: Sequence[ImageRecord], labels: Sequence[int]) -> dict[str, float | np.ndarray]:
    """COCO's twelve numbers over `labels`, and AP and AR of each label (float64, in their order).

    Keys are torchmetrics': map, map_50, ..., mar_1, ..., map_per_class, mar_100_per_class. What has
    nothing to count is NaN.
    """
    precision, recall = _run(images, labels)
    result: dict[str, float | np.ndarray] = {
        "map": _mean(precision[..., 0, 2]),
        "map_50": _mean(precision[0, ..., 0, 2]),
        "map_75": _mean(precision[5, ..., 0, 2]),
    }
    for index, name in enumerate(AREAS[1:], start=1):
        result[f"map_{name}"] = _mean(precision[..., index, 2])
    for index, most in enumerate((1, 10, 100)):
        result[f"mar_{most}"] = _mean(recall[..., 0, index])
    for index, name in enumerate(AREAS[1:], start=1):
        result[f"mar_{name}"] = _mean(recall[..., index, 2])
    result["map_per_class"] = np.array([_mean(precision[:, :, k, 0, 2]) for k in range(len(labels))])
    result["mar_100_per_class"] = np.array([_mean(recall[:, k, 0, 2]) for k in range(len(labels))])
    return result


def _mean(values: np.ndarray) -> float:
    """The mean of what COCOeval filled in; it marks what there is nothing to count for with -1."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else float("nan")


def _run(images: Sequence[ImageRecord], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (10 IoUs, 101 recalls, K, 4 areas, 3 limits) and recall (10, K, 4, 3); -1 where nothing counts."""
    from pycocotools.cocoeval import COCOeval

    class ArrayEval(COCOeval):
        """COCOeval whose objects and detections come from `images`."""

        def _prepare(self) -> None:
            self._gts = _objects(images)
            self._dts = _detections(images)

    run = ArrayEval(iouType="bbox")
    run.params.imgIds = list(range(len(images)))
    run.params.catIds = list(labels)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress with print
        run.evaluate()
        run.accumulate()
    return run.eval["precision"], run.eval["recall"]


def _objects(images: Sequence[ImageRecord]) -> defaultdict[tuple[int, int], list[dict]]:
    """COCO's annotations by (image, label). Ids start at 1: COCOeval reads 0 as "not matched"."""
    found: defaultdict[tuple[int, int], list[dict]] = defaultdict(list)
    number = 0
    for position, image in enumerate(images):
        rows = zip(image.labels.tolist(), _xywh(image.boxes), image.area.tolist(), strict=True)
        flags = zip(image.crowd.tolist(), image.difficult.tolist(), strict=True)
        for (label, box, area), (crowd, difficult) in zip(rows, flags, strict=True):
            number += 1
            found[position, label].append(
                {"id": number, "bbox": box, "area": area, "iscrowd": int(crowd), "ignore": crowd or difficult}
            )
    return found


def _detections(images: Sequence[ImageRecord]) -> defaultdict[tuple[int, int], list[dict]]:
    """COCO's results by (image, label)."""
    found: defaultdict[tuple[int, int], list[dict]] = defaultdict(list)
    number = 0
    for position, image in enumerate(images):
        rows = zip(image.detected_labels.tolist(), _xywh(image.detected_boxes), image.scores.tolist(), strict=True)
        for label, box, score in rows:
            number += 1
            found[position, label].append({"id": number, "bbox": box, "area": box[2] * box[3], "score": score})
    return found


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = boxes.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).tolist()
