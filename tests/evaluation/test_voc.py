"""The VOC protocols against the devkit's port read as plain Python; test_voc_result_files.py has published answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation import MeanAveragePrecision

INCLUSIVE = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)  # VOC's boxes minus this are half-open


def sample(boxes: list, labels: list[int], **fields: object) -> dict:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        **fields,
    }


def voc_eval(images: list[tuple], threshold: float, eleven: bool, strict: bool) -> float:
    """voc_eval.py of py-faster-rcnn for one class, in plain Python on inclusive boxes (papers.md 2.3).

    images: (boxes, difficult, detected boxes, scores) of each.
    """
    flat = [(-s, i, b) for i, (_, _, found, scores) in enumerate(images) for b, s in zip(found, scores, strict=True)]
    flat.sort(key=lambda row: row[0])
    objects = sum(not hard for _, difficult, _, _ in images for hard in difficult)
    taken = [[False] * len(boxes) for boxes, *_ in images]
    hits, misses, recall, precision = 0, 0, [], []
    for _, i, (x1, y1, x2, y2) in flat:
        boxes, difficult = images[i][:2]
        best, owner = -np.inf, -1
        for j, (u1, v1, u2, v2) in enumerate(boxes):
            width, height = max(min(x2, u2) - max(x1, u1) + 1, 0), max(min(y2, v2) - max(y1, v1) + 1, 0)
            union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - width * height
            if width * height / union > best:
                best, owner = width * height / union, j
        if best > threshold or (best == threshold and not strict):
            if not difficult[owner]:
                hits += not taken[i][owner]
                misses += taken[i][owner]
                taken[i][owner] = True
        else:
            misses += 1
        recall.append(hits / objects)
        precision.append(hits / max(hits + misses, np.finfo(np.float64).eps))
    pairs = list(zip(recall, precision, strict=True))
    if eleven:
        return sum(max((p for r, p in pairs if r >= point), default=0.0) for point in np.arange(0.0, 1.1, 0.1)) / 11
    area, before = 0.0, 0.0
    for k, reached in enumerate(recall):
        area += (reached - before) * max(precision[k:])
        before = reached
    return area


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 0.3, 0.5]), st.booleans(), st.booleans())
def test_equal_to_the_devkits_port(seed: int, threshold: float, eleven: bool, strict: bool) -> None:
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> list[list[int]]:
        corner = rng.integers(1, 12, (count, 2))
        return np.concatenate((corner, corner + rng.integers(0, 9, (count, 2))), axis=1).tolist()

    images = []
    options = {"iou_thresholds": [threshold], "hit_rule": ">" if strict else ">="}
    metric = MeanAveragePrecision("voc07" if eleven else "voc10", ["it"], **options)
    for image in range(4):
        truths, found = boxes(int(rng.integers(0, 4))), boxes(int(rng.integers(0, 8)))
        difficult = (rng.random(len(truths)) < 0.3).tolist()
        scores = (rng.integers(0, 9, len(found)) / 8).tolist()
        images.append((truths, difficult, found, scores))
        detections = sample(found, [1] * len(found), scores=torch.tensor(scores))
        target = sample(truths, [1] * len(truths), difficult=torch.tensor(difficult).bool(), image_id=image)
        for part in (detections, target):
            part["boxes"] = part["boxes"] - INCLUSIVE
        metric.update([detections], [target])
    result = metric.compute()
    assert ("map_50" in result) == (threshold == 0.5)
    ours = result["map"].item()
    if all(hard for _, difficult, _, _ in images for hard in difficult):
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(voc_eval(images, threshold, eleven, strict), abs=1e-12)


@pytest.mark.parametrize("rule", [None, ">", ">="])
def test_a_hit_is_above_the_threshold_or_as_the_matlab_devkit_has_it_at_it(rule: str | None) -> None:
    target = sample([[0, 0, 10, 10]], [1])
    for height, expected in ((4.5, 0.0), (5.0, float(rule == ">=")), (5.5, 1.0)):  # IoU .45, .5 and .55
        metric = MeanAveragePrecision("voc10", ["it"], hit_rule=rule)
        metric.update([sample([[0, 0, 10, height]], [1], scores=torch.ones(1))], [target])
        assert metric.compute()["map_50"].item() == expected


def test_crowds_count_as_difficult() -> None:
    boxes = [[0, 0, 10, 10], [50, 50, 90, 90]]
    found = sample([boxes[1], boxes[1], boxes[0]], [1, 1, 1], scores=torch.tensor([0.9, 0.8, 0.7]))
    metric = MeanAveragePrecision("voc10", ["it"])
    metric.update([found], [sample(boxes, [1, 1], crowd=torch.tensor([False, True]))])
    assert metric.compute()["map"].item() == 1


def test_three_of_ten_do_not_reach_a_recall_of_three_tenths() -> None:
    # np.arange(0, 1.1, .1)[3] is a hair above .3: three points of recall are reached, and not four.
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(10)]
    metric = MeanAveragePrecision("voc07", ["it"])
    metric.update([sample(boxes[:3], [1] * 3, scores=torch.tensor([0.9, 0.8, 0.7]))], [sample(boxes, [1] * 10)])
    assert metric.compute()["map"].item() == pytest.approx(3 / 11, abs=1e-15)


def test_of_objects_with_equal_iou_the_first_is_found() -> None:
    left, right = [0, 0, 10, 10], [2, 0, 12, 10]
    detection = sample([[1, 0, 11, 10]], [1], scores=torch.ones(1))
    for difficult, expected in (([True, False], 0.0), ([False, True], 1.0)):
        metric = MeanAveragePrecision("voc10", ["it"])
        metric.update([detection], [sample([left, right], [1, 1], difficult=torch.tensor(difficult))])
        assert metric.compute()["map"].item() == expected


@pytest.mark.parametrize("protocol", ["voc07", "voc10"])
def test_what_overlaps_nothing_is_no_hit_even_at_a_threshold_of_zero(protocol: str) -> None:
    metric = MeanAveragePrecision(protocol, ["it"], iou_thresholds=[0.0], hit_rule=">=")
    metric.update([sample([[50, 50, 60, 60]], [1], scores=torch.ones(1))], [sample([[0, 0, 10, 10]], [1])])
    assert metric.compute()["map"].item() == 0
