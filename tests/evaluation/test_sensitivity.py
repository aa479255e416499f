"""AP and recall of parts of the objects: by size as COCOeval, by aspect ratio against the plain definition."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation.analysis import analyse
from detkit.evaluation.evaluation_set import EvaluationSet
from detkit.evaluation.sensitivity import ASPECTS, QUANTILES, by_aspect, by_size
from tests.evaluation.sets import Box, Found, Image, Thing, average_precision, flat, match, random_images
from tests.evaluation.test_coco import run_pycocotools


def pycocotools_at_50(whole: EvaluationSet, classes: int, ranges: list[tuple[float, float]]) -> tuple[list, list]:
    """AP and recall of each range of areas, over all classes with objects in it; NaN for none."""
    annotations = [
        {
            "id": g + 1,
            "image_id": int(image) + 1,
            "category_id": int(whole.labels[g]),
            "bbox": whole.boxes[g].tolist(),
            "area": float(whole.area[g]),
            "iscrowd": int(whole.crowd[g]),
        }
        for g, image in enumerate(whole.object_images)
    ]
    results = [
        {
            "image_id": int(image) + 1,
            "category_id": int(whole.detected_labels[d]),
            "bbox": whole.detected_boxes[d].tolist(),
            "score": float(whole.scores[d]),
        }
        for d, image in enumerate(whole.detection_images)
    ]
    areas = {"areaRng": [list(limits) for limits in ranges], "areaRngLbl": [str(limits) for limits in ranges]}
    run = run_pycocotools(annotations, results, len(whole), classes, iouThrs=np.array([0.5]), **areas)
    ap, recall = [], []
    for a in range(len(ranges)):
        precision = run.eval["precision"][0, :, :, a, 2]
        here = precision[:, precision[0] > -1]
        ap.append(here.mean() if here.size else math.nan)
        values = run.eval["recall"][0, :, a, 2]
        counts = [
            sum((whole.labels == k) & ~whole.crowd & (whole.area >= ranges[a][0]) & (whole.area <= ranges[a][1]))
            for k in range(1, classes + 1)
        ]
        found = sum(value * count for value, count in zip(values, counts, strict=True) if count)
        recall.append(found / sum(counts) if sum(counts) else math.nan)
    return ap, recall


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_sizes_are_pycocotools(seed: int) -> None:
    whole = flat(random_images(seed))
    # Sides of 16 to 96 pixels: areas around 32 and 96 squared, and on them.
    whole = replace(
        whole,
        boxes=whole.boxes * 8,
        detected_boxes=whole.detected_boxes * 8,
        area=whole.area * 64,
        difficult=np.zeros_like(whole.difficult),
    )
    sizes, quantiles = by_size(whole, 3)
    assert [row.name for row in sizes] == ["small", "medium", "large"]
    ranges = [(row.low, np.nextafter(row.high, -1) if row in quantiles else row.high) for row in (*sizes, *quantiles)]
    ap, recall = pycocotools_at_50(whole, 3, ranges)
    np.testing.assert_allclose([row.ap for row in (*sizes, *quantiles)], ap, atol=1e-12)
    np.testing.assert_allclose([row.recall for row in (*sizes, *quantiles)], recall, atol=1e-12)


def test_quantiles_have_their_share() -> None:
    things = [Thing((0.0, 0.0, 1.0, float(side)), 1) for side in range(1, 101)]
    _, quantiles = by_size(flat([(things, [])]), 1)
    assert [row.name for row in quantiles] == list(QUANTILES)
    assert [row.objects for row in quantiles] == [10, 20, 40, 20, 10]
    assert (quantiles[0].low, quantiles[-1].high) == (0, math.inf)
    assert all(row.ap == 0 and row.recall == 0 for row in quantiles)


def test_no_object_is_in_two_quantiles() -> None:
    things = [Thing((0.0, 0.0, 4.0, 4.0), 1)] * 9 + [Thing((0.0, 0.0, 5.0, 5.0), 1)]
    assert [row.objects for row in by_size(flat([(things, [])]), 1)[1]] == [0, 0, 0, 9, 1]


def test_nothing_is_nan() -> None:
    whole = flat([([], [Found((0.0, 0.0, 4.0, 4.0), 1, 0.5)])])
    rows = [*chain(*by_size(whole, 1)), *by_aspect(whole, 1)]
    assert len(rows) == 13
    assert all(row.objects == 0 and math.isnan(row.ap) and math.isnan(row.recall) for row in rows)


def test_aspects_worked_by_hand() -> None:
    square, tall = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 10.0, 20.0)
    found = [
        Found(tall, 1, 0.9),
        Found((80.0, 80.0, 9.0, 9.0), 1, 0.8),  # a miss among the square ones
        Found(square, 1, 0.7),
        Found((80.0, 0.0, 40.0, 1.0), 1, 0.6),
    ]
    rows = {row.name: row for row in by_aspect(flat([([Thing(square, 1), Thing(tall, 1)], found)]), 1)}
    assert list(rows) == ["very tall", "tall", "square", "wide", "very wide"]
    assert (rows["tall"].objects, rows["tall"].recall, rows["tall"].ap) == (1, 1, pytest.approx(1))
    assert (rows["square"].objects, rows["square"].recall, rows["square"].ap) == (1, 1, pytest.approx(0.5))
    assert rows["very wide"].objects == 0


def ratio(box: Box) -> float:
    return box[2] / box[3]


def plain_by_aspect(images: list[Image], low: float, high: float) -> tuple[int, float, float]:
    def inside(box: Box) -> bool:
        return low <= ratio(box) < high

    points: dict[int, list[tuple[float, bool]]] = {1: [], 2: [], 3: []}
    objects = dict.fromkeys(points, 0)
    for things, found in images:
        things = [thing if inside(thing.box) else replace(thing, difficult=True) for thing in things]
        for thing in things:
            objects[thing.label] += not thing.ignored
        for detection, t in zip(found, match((things, found)), strict=True):
            if inside(detection.box) if t < 0 else not things[t].ignored:
                points[detection.label].append((detection.score, t >= 0))
    total = sum(objects.values())
    if not total:
        return 0, math.nan, math.nan
    hits = {k: [hit for _, hit in sorted(points[k], key=lambda point: -point[0])] for k in points}
    values = [average_precision(hits[k], objects[k]) for k in points if objects[k]]
    return total, sum(map(sum, hits.values())) / total, sum(values) / len(values)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_aspects_are_those_of_the_definition(seed: int) -> None:
    images = random_images(seed)
    for row, (low, high) in zip(by_aspect(flat(images), 3), ASPECTS.values(), strict=True):
        np.testing.assert_allclose((row.objects, row.recall, row.ap), plain_by_aspect(images, low, high), atol=1e-12)


def test_boxes_without_height_or_width_have_a_place() -> None:
    boxes = [(0.0, 0.0, 4.0, 0.0), (0.0, 0.0, 0.0, 4.0), (0.0, 0.0, 0.0, 0.0)]
    rows = {row.name: row.objects for row in by_aspect(flat([([Thing(box, 1) for box in boxes], [])]), 1)}
    assert rows == {"very tall": 1, "tall": 0, "square": 1, "wide": 0, "very wide": 1}


def test_classes() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    whole = flat([([Thing(box, 1), Thing(box, 2)], [Found(box, 1, 0.9), Found(box, 3, 0.9)])])
    rows = analyse(whole, ["cat", "dog", "cow", "hen"]).by_class
    assert [row.name for row in rows] == ["cat", "dog", "cow", "hen"]
    assert [row.objects for row in rows] == [1, 1, 0, 0]
    assert (rows[0].recall, rows[1].recall, rows[1].ap) == (1, 0, 0)
    assert rows[0].ap == pytest.approx(1)
    assert all(math.isnan(row.recall) and math.isnan(row.ap) for row in rows[2:])
