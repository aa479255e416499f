"""The whole analysis: that its parts agree with one another, and what of it goes into JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import ConfigError
from detkit.evaluation.analysis import analyse
from detkit.evaluation.coco import evaluate
from detkit.evaluation.curves import best_f1, precision_recall
from detkit.evaluation.errors import ERROR_KINDS
from tests.evaluation.sets import Found, Thing, flat, random_images

HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 10.0, 10.0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_parts_agree(seed: int) -> None:
    whole = flat(random_images(seed))
    result = analyse(whole, ["cat", "dog", "cow"])
    ap = evaluate(whole, 3, (0.5,), max_detections=(100,)).precision[0, :, :, 0].mean(axis=0)
    np.testing.assert_allclose(result.base_ap, np.nanmean(ap) if (~np.isnan(ap)).any() else np.nan, atol=1e-12)
    np.testing.assert_allclose([row.ap for row in result.by_class], ap, atol=1e-12)
    hits, errors = int(result.assignment.hits.sum()), sum(result.error_counts.values())
    wrong = errors - result.error_counts["missed"]
    assert hits + wrong == sum(len(curve.scores) for curve in result.curves)
    objects = sum(curve.num_objects for curve in result.curves)
    for rows in (result.by_class, result.by_quantile, result.by_aspect):
        assert sum(row.objects for row in rows) == objects
    assert result.confusion[:3].sum() == objects
    # At its default threshold the matrix has the best F1 there is.
    f1 = best_f1(precision_recall(whole, 3, result.assignment)[0]).f1
    if f1 > 0:
        assert 2 * np.trace(result.confusion) / (result.confusion[:, :3].sum() + objects) == pytest.approx(f1)
    assert list(result.error_ap) == list(result.error_counts) == list(ERROR_KINDS)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in result.error_ap.values())
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(text) == result.to_dict()


def test_what_goes_into_json() -> None:
    found = [Found(HERE, 1, 0.9), Found(THERE, 2, 0.6), Found((80.0, 0.0, 5.0, 5.0), 1, 0.5)]
    whole = flat([([Thing(HERE, 1), Thing(THERE, 1)], found)])
    report = analyse(whole, ["cat", "dog"]).to_dict()
    assert report["class_names"] == ["cat", "dog"] and (report["foreground"], report["background"]) == (0.5, 0.1)
    assert report["base_ap"] == pytest.approx(51 / 101)
    assert report["error_counts"] == dict.fromkeys(ERROR_KINDS, 0) | {"classification": 1, "background": 1}
    assert report["score_threshold"] == 0.9 and report["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert report["working_points"][1] == {"score": None, "precision": None, "recall": None, "f1": None}
    cat, dog = report["curves"]
    assert report["curve_recalls"][50:52] == [0.5, 0.51] and len(report["curve_recalls"]) == 101
    assert cat["precision"] == [1.0] * 51 + [0.0] * 50 and cat["scores"] == [0.9] * 51 + [None] * 50
    assert dog == {"label": 2, "num_objects": 0, "precision": [], "scores": []}
    assert report["by_quantile"][-1]["high"] is None
    assert not {"errors", "assignment"} & set(report)


def test_a_dip_of_the_precision_is_filled_in_json() -> None:
    image = ([Thing(HERE, 1), Thing((20.0, 0.0, 5.0, 5.0), 1)], [Found(THERE, 1, 0.9), Found(HERE, 1, 0.8)])
    (curve,) = analyse(flat([image]), 1).to_dict()["curves"]
    assert curve["precision"] == [0.5] * 51 + [0.0] * 50
    assert curve["scores"] == [0.9] + [0.8] * 50 + [None] * 50


def test_classes_by_number_and_a_threshold_of_ones_own() -> None:
    image = ([Thing(HERE, 1), Thing(THERE, 2)], [Found(HERE, 1, 0.9), Found(THERE, 1, 0.3)])
    result = analyse(flat([image]), 2, score_threshold=0.2)
    assert result.class_names == ["1", "2"] and result.score_threshold == 0.2
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_without_anything() -> None:
    result = analyse(flat([]), ["cat"])
    assert math.isnan(result.base_ap) and result.score_threshold == 0.5 and result.confusion.sum() == 0
    assert json.dumps(result.to_dict(), allow_nan=False)


def test_thresholds_without_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose 0 < background < foreground"):
        analyse(flat([]), 1, background=0.7)
