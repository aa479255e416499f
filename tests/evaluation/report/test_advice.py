"""What is advised, by how good the detector is."""

from __future__ import annotations

import re

import pytest

from detkit.evaluation.analysis import Analysis, analyse
from detkit.evaluation.report.advice import REMEDIES, error_kinds, first_advice
from tests.evaluation.report.pages import random_set

LABELS = re.compile(r"label|annotated", re.IGNORECASE)


def analysis_at(base_ap: float) -> Analysis:
    analysis = analyse(random_set(0, 2), ["a", "b"])
    object.__setattr__(analysis, "base_ap", base_ap)
    return analysis


def test_labels_are_not_blamed_before_the_detector_has_learnt() -> None:
    for base_ap, is_blamed in ((0.05, False), (0.6, True)):
        kinds = error_kinds(analysis_at(base_ap), "FasterRCNN")
        assert any(kind.label_hint for kind in kinds) == is_blamed
        assert not any(LABELS.search(kind.remedy) for kind in kinds)
    (heading, text), *_ = first_advice({"map_50": 0.05, "map_75": 0.0}, analysis_at(0.05))
    assert heading == "The detector has hardly learnt"
    assert "train longer" in text and "curves" in text


def test_loose_boxes_come_first_where_only_ap75_is_low() -> None:
    metrics = {"map_50": 0.9, "map_75": 0.4, "detector": "FasterRCNN"}
    [(heading, text)] = first_advice(metrics, analysis_at(0.9))
    assert heading == "Loose boxes first"
    assert "AP50 is 0.90, AP75 only 0.40" in text and "anchors" in text
    assert not LABELS.search(text)
    assert "anchor" not in first_advice(metrics | {"detector": "FastRCNN"}, analysis_at(0.9))[0][1]


@pytest.mark.parametrize(
    "metrics", [{"map_50": 0.9, "map_75": 0.7}, {"map_50": 0.9}, {"map_50": 0.9, "map_75": None}, {}]
)
def test_otherwise_nothing_comes_first(metrics: dict[str, float]) -> None:
    assert first_advice(metrics, analysis_at(0.9)) == []


def test_only_a_detector_with_anchors_is_advised_about_them() -> None:
    assert [name for name, words in REMEDIES.items() if "anchor" in " ".join(words.values())] == ["FasterRCNN"]
