"""A run against an earlier one."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from detkit.evaluation.analysis import analyse
from detkit.evaluation.report.comparison import compare
from tests.evaluation.report.pages import metrics_of, random_set, report

NAMES = ["cat", "dog", "cow"]


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    s = random_set(0, 3)
    plain = {**metrics_of(s, NAMES), "analysis": analyse(s, NAMES).to_dict()}
    return json.loads(json.dumps(plain, default=str))


def test_a_run_against_itself_shows_no_difference_and_no_warning(before: dict[str, Any]) -> None:
    comparison = compare(before, before)
    assert comparison.warnings == []
    assert comparison.only_now == comparison.only_before == []
    assert all(each.change == 0 and each.better is None for each in comparison.numbers + comparison.classes)
    names = [each.name for each in comparison.numbers]
    assert names[:4] == ["AP", "AP50", "AP75", "AR@100"]
    assert "AP50 lost: localization" in names


def test_classes_come_with_the_largest_change_first(before: dict[str, Any]) -> None:
    now = copy.deepcopy(before)
    before = copy.deepcopy(before)
    before["map_per_class"] = {"cat": 0.5, "dog": 0.5, "gone": 0.1}
    now["map_per_class"] = {"cat": 0.51, "dog": 0.3, "new": 0.9}
    comparison = compare(now, before)
    assert [(each.name, each.better) for each in comparison.classes] == [("dog", False), ("cat", True)]
    assert [each.change for each in comparison.classes] == pytest.approx([-0.2, 0.01])
    assert (comparison.only_now, comparison.only_before) == (["new"], ["gone"])


def test_less_loss_is_better(before: dict[str, Any]) -> None:
    now = copy.deepcopy(before)
    now["analysis"]["error_ap"]["missed"] = before["analysis"]["error_ap"]["missed"] - 0.01
    now["map"] = before["map"] - 0.01
    better = {each.name: each.better for each in compare(now, before).numbers}
    assert better["AP50 lost: missed"] is True
    assert better["AP"] is False


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("protocol", "VOC07", "protocols differ: “VOC07” in the baseline"),
        ("data", "COCO(other)", "data sets differ"),
        ("split", None, "splits differ: unknown in the baseline, “test” now"),
        ("num_images", 3, "numbers of images differ: 3 in the baseline, 12 now"),
    ],
)
def test_what_cannot_be_compared_is_said(before: dict[str, Any], key: str, value: Any, words: str) -> None:
    [warning] = compare(before, {**before, key: value}).warnings
    assert words in warning


def test_other_objects_are_said(before: dict[str, Any]) -> None:
    other = copy.deepcopy(before)
    other["analysis"]["by_class"][0]["objects"] += 1
    [warning] = compare(before, other).warnings
    assert "numbers of objects differ" in warning


@pytest.mark.parametrize(
    "baseline",
    [
        {},
        {"map": None, "map_per_class": None, "analysis": None},
        {"map": "0.5", "map_per_class": ["cat"], "analysis": []},
        {"map": True, "map_per_class": {"cat": "much", "dog": None}, "analysis": {"error_ap": 3, "by_class": 4}},
        {"map": 0.5, "map_per_class": {"cat": math.nan}, "analysis": {"by_class": [{}]}},
    ],
)
def test_a_baseline_from_elsewhere_does_no_harm(tmp_path: Path, baseline: dict[str, Any]) -> None:
    page, _ = report(tmp_path, random_set(0, 3), NAMES, baseline=baseline)
    assert 'id="comparison"' in page
    assert "Not comparable?" in page


def test_the_page_shows_the_difference_class_by_class(tmp_path: Path, before: dict[str, Any]) -> None:
    page, _ = report(tmp_path, random_set(5, 3), NAMES, baseline=before)
    section = page[page.index('id="comparison"') :]
    assert all(f">{name}</span>" in section for name in NAMES)
    assert "points against the baseline" in page[: page.index('id="classes"')]
    assert "AP points against the baseline" in section
    without, _ = report(tmp_path, random_set(5, 3), NAMES)
    assert 'id="comparison"' not in without
    assert "#comparison" not in without


def test_nothing_changed_draws_no_bars(tmp_path: Path, before: dict[str, Any]) -> None:
    page, _ = report(tmp_path, random_set(0, 3), NAMES, baseline=before)
    assert "AP points against the baseline" not in page
    assert "Not comparable?" not in page
