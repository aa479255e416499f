"""Curves and working points, against counting at each threshold."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.evaluation.curves import ClassCurve, WorkingPoint, best_f1, precision_recall
from detkit.evaluation.matching import assign
from tests.evaluation.sets import Found, Image, Thing, average_precisions, flat, match, random_images

HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 10.0, 10.0)


def curves_of(images: list[Image], classes: int) -> list[ClassCurve]:
    whole = flat(images)
    return precision_recall(whole, classes, assign(whole, classes))[1:]


def test_a_curve_worked_by_hand() -> None:
    found = [Found(HERE, 1, 0.6), Found(THERE, 1, 0.9), Found(HERE, 1, 0.5), Found(HERE, 2, 0.4)]
    first, second, third = curves_of([([Thing(HERE, 1), Thing((20.0, 20.0, 5.0, 5.0), 1)], found)], classes=3)
    assert first.label == 1 and first.num_objects == 2
    assert first.scores.tolist() == [0.9, 0.6, 0.5]
    assert first.precision.tolist() == [0, 1 / 2, 1 / 3]
    assert first.recall.tolist() == [0, 1 / 2, 1 / 2]
    assert best_f1(first) == WorkingPoint(score=0.6, precision=0.5, recall=0.5, f1=0.5)
    assert second.precision.tolist() == [0] and math.isnan(second.recall[0]) and second.num_objects == 0
    assert len(third.scores) == 0
    for nothing in (second, third):
        assert all(map(math.isnan, astuple(best_f1(nothing))))


def test_equal_scores_are_kept_together() -> None:
    # The hit comes first, but no threshold keeps it without the other.
    image = ([Thing(HERE, 1)], [Found(HERE, 1, 0.5), Found(THERE, 1, 0.5)])
    assert best_f1(curves_of([image], 1)[0]) == WorkingPoint(0.5, 0.5, 1.0, pytest.approx(2 / 3))


def test_ignored_objects_are_not_in_the_curve() -> None:
    things = [Thing(HERE, 1, difficult=True), Thing(THERE, 1)]
    (curve,) = curves_of([(things, [Found(HERE, 1, 0.9), Found(THERE, 1, 0.8)])], 1)
    assert curve.scores.tolist() == [0.8] and curve.num_objects == 1


def test_without_detections_there_is_no_threshold() -> None:
    assert math.isnan(best_f1(curves_of([([Thing(HERE, 1)], [])], 1)[0]).score)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_working_points_are_the_best_of_all_thresholds(seed: int) -> None:
    images = random_images(seed)
    whole = flat(images)
    for curve in precision_recall(whole, 3, assign(whole, 3)):
        wanted = {curve.label} if curve.label else {1, 2, 3}
        objects = sum(t.label in wanted and not t.ignored for things, _ in images for t in things)
        assert curve.num_objects == objects
        counted = []
        for things, found in images:
            for detection, t in zip(found, match((things, found)), strict=True):
                if detection.label in wanted and (t < 0 or not things[t].ignored):
                    counted.append((detection.score, t >= 0))
        assert sorted(curve.scores.tolist()) == sorted(score for score, _ in counted)
        best = best_f1(curve)
        if not objects or not counted:
            assert all(map(math.isnan, astuple(best)))
            continue
        points = []
        for threshold in {score for score, _ in counted}:
            hits = sum(hit for score, hit in counted if score >= threshold)
            kept = sum(score >= threshold for score, _ in counted)
            points.append((2 * hits / (kept + objects), threshold, hits / kept, hits / objects))
        f1, threshold, precision, recall = max(points)
        assert astuple(best) == pytest.approx((threshold, precision, recall, f1), abs=1e-12)
        if precision + recall:
            assert best.f1 == pytest.approx(2 * precision * recall / (precision + recall))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_area_is_the_average_precision(seed: int) -> None:
    images = random_images(seed)
    for curve, expected in zip(curves_of(images, 3), average_precisions(images, 3), strict=True):
        if curve.num_objects:
            reached = [curve.precision[curve.recall >= i * 0.01].max(initial=0.0) for i in range(101)]
            assert sum(reached) / 101 == pytest.approx(expected, abs=1e-12)
