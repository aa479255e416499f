"""The COCO protocol against pycocotools itself, fed from JSON-like dicts."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation import MeanAveragePrecision, coco
from tests.evaluation.test_coco_files import TWELVE


def random_set(seed: int, images: int, classes: int, crowded: bool) -> tuple[list[dict], list[dict]]:
    """COCO annotations and results as dicts: ties of scores and of boxes, crowds, own areas, images with nothing."""
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    results: list[dict] = []
    for image in range(1, images + 1):
        objects = int(rng.integers(0, 6))
        detections = int(rng.integers(101, 130)) if crowded and image == 1 else int(rng.integers(0, 12))
        for _ in range(objects):
            side = rng.integers(4, 500, 2) / rng.choice([1, 4])
            box = [*(rng.integers(0, 200, 2) / 4).tolist(), *side.tolist()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, classes + 1)),
                    "bbox": box,
                    "area": float(box[2] * box[3] * rng.choice([0.5, 0.75, 1.0])),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
        mine = [a for a in annotations if a["image_id"] == image]
        for _ in range(detections):
            box = [*(rng.integers(0, 200, 2) / 4).tolist(), *(rng.integers(4, 500, 2) / 4).tolist()]
            category = int(rng.integers(1, classes + 1))
            if mine and rng.random() < 0.7:  # most are near an object
                near = mine[rng.integers(len(mine))]
                box = [v + float(rng.integers(-8, 9)) / 4 for v in near["bbox"][:2]] + near["bbox"][2:]
                category = near["category_id"]
            score = float(rng.integers(0, 9)) / 8
            results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    return annotations, results


def run_pycocotools(
    annotations: list[dict], results: list[dict], images: int, classes: int, **parameters: object
) -> COCOeval:
    def dataset() -> COCO:
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(1, images + 1)],
            "categories": [{"id": c, "name": str(c)} for c in range(1, classes + 1)],
            "annotations": [dict(a) for a in annotations],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset()
        if results:
            found = truth.loadRes([dict(r) for r in results])
        else:  # loadRes fails on an empty list
            found = dataset()
            found.dataset["annotations"] = []
            found.createIndex()
        run = COCOeval(truth, found, "bbox")
        for name, value in parameters.items():
            setattr(run.params, name, value)
        run.evaluate()
        run.accumulate()
        if not parameters:
            run.summarize()
    return run


def pycocotools_says(annotations: list[dict], results: list[dict], images: int, classes: int) -> dict[str, np.ndarray]:
    run = run_pycocotools(annotations, results, images, classes)
    precision, recall = run.eval["precision"][:, :, :, 0, 2], run.eval["recall"][:, :, 0, 2]
    return {
        **{key: np.array(value) for key, value in zip(TWELVE, run.stats, strict=True)},
        "map_per_class": precision.mean(axis=(0, 1)),
        "mar_100_per_class": recall.mean(axis=0),
    }


def as_samples(annotations: list[dict], results: list[dict], images: int) -> tuple[list[dict], list[dict]]:
    def corners(rows: list[dict]) -> torch.Tensor:
        boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
        return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)

    detections, targets = [], []
    for image in range(1, images + 1):
        objects = [a for a in annotations if a["image_id"] == image]
        found = [r for r in results if r["image_id"] == image]
        targets.append(
            {
                "image_id": image,
                "boxes": corners(objects),
                "labels": torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
                "crowd": torch.tensor([a["iscrowd"] for a in objects], dtype=torch.bool),
                "area": torch.tensor([a["area"] for a in objects]),
            }
        )
        detections.append(
            {
                "boxes": corners(found),
                "scores": torch.tensor([r["score"] for r in found]),
                "labels": torch.tensor([r["category_id"] for r in found], dtype=torch.int64),
            }
        )
    return detections, targets


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans())
def test_equal_to_pycocotools(seed: int, images: int, classes: int, crowded: bool, silent: bool) -> None:
    annotations, results = random_set(seed, images, classes, crowded)
    if silent:
        results = []
    expected = pycocotools_says(annotations, results, images, classes)
    metric = MeanAveragePrecision("coco", [str(c) for c in range(1, classes + 1)])
    for pair in zip(*as_samples(annotations, results, images), strict=True):
        metric.update(*([part] for part in pair))
    ours = metric.compute()
    assert set(ours) == {*expected, "classes", "map_by_class", "num_images", "num_over_limit", "protocol"}
    for key, value in expected.items():
        without_marks = np.where(value == -1, np.nan, value)
        np.testing.assert_allclose(ours[key].numpy(), without_marks, rtol=0, atol=1e-12, err_msg=key)
    assert ours["classes"].tolist() == list(range(1, classes + 1))


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.75, 1.0]), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0]), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([1, 2, 5, 300]), min_size=1, max_size=4, unique=True),
)
def test_other_settings_equal_to_pycocotools(seed: int, ious: list, recalls: list, limits: list) -> None:
    annotations, results = random_set(seed, images=4, classes=2, crowded=True)
    areas = {"whole": [0, 1e10], "tiny": [0, 900], "rest": [900.0, 20000]}
    parameters = {"iouThrs": np.array(sorted(ious)), "recThrs": np.array(sorted(recalls)), "maxDets": sorted(limits)}
    areas_there = {"areaRng": list(areas.values()), "areaRngLbl": list(areas)}
    run = run_pycocotools(annotations, results, 4, 2, **parameters, **areas_there)
    metric = MeanAveragePrecision(
        "coco", ["1", "2"], iou_thresholds=ious, recall_thresholds=recalls, max_detections=limits, area_ranges=areas
    )
    metric.update(*as_samples(annotations, results, 4))
    ours = metric.compute()

    def mean(values: np.ndarray) -> float:
        return values[values > -1].mean() if (values > -1).any() else math.nan

    precision, recall = run.eval["precision"], run.eval["recall"]
    expected = {"map": mean(precision[..., 0, -1])}
    expected |= {f"map_{name}": mean(precision[..., a, -1]) for a, name in enumerate(areas) if a}
    expected |= {f"mar_{limit}": mean(recall[..., 0, m]) for m, limit in enumerate(sorted(limits))}
    expected |= {f"mar_{name}": mean(recall[..., a, -1]) for a, name in enumerate(areas) if a}
    expected |= {f"map_{round(100 * iou)}": mean(precision[t, ..., 0, -1]) for t, iou in enumerate(sorted(ious))
                 if iou in (0.5, 0.75)}  # fmt: skip
    got = {k: v.item() for k, v in ours.items() if torch.is_tensor(v) and v.ndim == 0}
    assert got == pytest.approx(expected, rel=0, abs=1e-12, nan_ok=True)
    detections = sum(1 for r in results)
    counted = {(r["image_id"], r["category_id"]): 0 for r in results}
    for r in results:
        counted[r["image_id"], r["category_id"]] += 1
    assert ours["num_over_limit"] == detections - sum(min(n, max(limits)) for n in counted.values())
    assert all(f"{recall:.2f}" in ours["protocol"] for recall in recalls if round(recall, 2) == recall)
    assert f"at most {max(limits)} detection" in ours["protocol"]


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_pairs_compared_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, results = random_set(0, images=5, classes=2, crowded=True)
    metric = MeanAveragePrecision("coco", ["1", "2"])
    metric.update(*as_samples(annotations, results, 5))
    whole = metric.protocol.evaluate(metric.gathered(), 2)
    monkeypatch.setattr(coco, "PAIRS_AT_ONCE", at_once)
    parts = metric.protocol.evaluate(metric.gathered(), 2)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)


def detect(*rows: tuple[list[float], float]) -> dict:
    return {
        "boxes": torch.tensor([box for box, _ in rows]).reshape(-1, 4),
        "scores": torch.tensor([score for _, score in rows]),
        "labels": torch.ones(len(rows), dtype=torch.int64),
    }


def truth(*boxes: list[float], **flags: list[bool]) -> dict:
    fields = {name: torch.tensor(flag) for name, flag in flags.items()}
    return {"boxes": torch.tensor(boxes), "labels": torch.ones(len(boxes), dtype=torch.int64), **fields}


def average(detections: dict, target: dict) -> float:
    metric = MeanAveragePrecision("coco")
    metric.update([detections], [target])
    return metric.compute()["map"].item()


def test_a_difficult_object_is_neither_hit_nor_miss_and_is_no_region() -> None:
    plain, hard = [0.0, 0.0, 50.0, 50.0], [100.0, 100.0, 200.0, 200.0]
    inside = [110.0, 110.0, 130.0, 130.0]
    target = truth(plain, hard, difficult=[False, True])
    assert average(detect((hard, 0.9), (plain, 0.8)), target) == pytest.approx(1)
    assert average(detect((plain, 0.8)), target) == pytest.approx(1)  # it need not be found
    # A small box within it is a miss, though in a crowd it would be ignored; any number of times.
    assert average(detect((inside, 0.9), (plain, 0.8)), target) == pytest.approx(0.5)
    crowd = truth(plain, hard, crowd=[False, True])
    assert average(detect((inside, 0.9), (hard, 0.85), (inside, 0.85), (plain, 0.8)), crowd) == pytest.approx(1)
    # Found twice, a difficult object is a miss once, as any object outside the range of areas.
    assert average(detect((hard, 0.9), (hard, 0.85), (plain, 0.8)), target) == pytest.approx(0.5)


def test_only_difficult_objects_are_nothing_to_count() -> None:
    box = [0.0, 0.0, 50.0, 50.0]
    assert math.isnan(average(detect((box, 0.9)), truth(box, difficult=[True])))
