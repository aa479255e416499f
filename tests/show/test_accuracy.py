"""Curves of precision and recall with the AP of each protocol, and the cost of errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkit import show
from detkit.errors import ConfigError
from detkit.evaluation import MeanAveragePrecision
from detkit.evaluation.analysis import analyse
from detkit.evaluation.curves import ClassCurve, precision_recall
from detkit.evaluation.matching import assign


def evaluated(right: list[bool], num_objects: int, protocol: str) -> tuple[ClassCurve, float]:
    """The curve of detections that are right or wrong, best first, and its AP at IoU 0.5 by the evaluator itself."""
    corner = 100.0 * torch.arange(max(num_objects, 1) + len(right))[:, None]
    places = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    objects, nowhere = iter(range(num_objects)), iter(range(num_objects, len(places)))
    rows = [next(objects if hit else nowhere) for hit in right]
    found = {
        "boxes": places[rows],
        "scores": torch.linspace(1, 0.1, len(right)),
        "labels": torch.ones(len(right)).long(),
    }
    target = {"boxes": places[:num_objects], "labels": torch.ones(num_objects).long()}
    options = {"iou_thresholds": [0.5]} if protocol == "coco" else {}
    metric = MeanAveragePrecision(protocol, class_names=["dog"], **options)
    metric.update([found], [target])
    ap = metric.compute()["map"].item()
    return precision_recall(metric.evaluated, 1, assign(metric.evaluated, 1))[1], ap


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), max_size=25), st.integers(0, 3), st.sampled_from(["voc07", "voc10", "coco"]))
def test_the_ap_in_the_title_is_the_evaluators(right: list[bool], missed: int, protocol: str) -> None:
    curve, ap = evaluated(right, max(sum(right) + missed, 1), protocol)
    ax = show.precision_recall(curve, protocol, Figure().subplots())
    assert ax.get_title().endswith(f"AP {ap:.4f}")
    detections = ax.lines[-1]
    assert np.array_equal(detections.get_xdata(), curve.recall)
    assert np.array_equal(detections.get_ydata(), curve.precision)
    points = [each.get_offsets() for each in ax.collections if each.get_label().endswith("points")]
    assert [len(each) for each in points] == {"voc07": [11], "voc10": [], "coco": [101]}[protocol]
    for each in points:  # the protocols of points take their mean
        assert np.mean(each[:, 1]) == pytest.approx(ap)
    staircase = ax.lines[0]
    area = np.trapezoid(staircase.get_ydata(), staircase.get_xdata())
    assert area == pytest.approx(evaluated(right, curve.num_objects, "voc10")[1])


@pytest.mark.parametrize(("protocol", "ap"), [("voc07", "0.8545"), ("voc10", "0.8667"), ("coco", "0.8653")])
def test_the_courses_dogs(protocol: str, ap: str, ax: Axes) -> None:
    curve, _ = evaluated([True, True, False, False, True], 3, protocol)
    show.precision_recall(curve, protocol, ax)
    assert ax.get_title().endswith(f"AP {ap}")
    assert curve.precision[[0, 1, 4]].tolist() == [1 / 1, 2 / 2, 3 / 5]


def test_an_unknown_protocol_is_refused(ax: Axes) -> None:
    with pytest.raises(ConfigError, match="'voc12'"):
        show.precision_recall(evaluated([True], 1, "coco")[0], "voc12", ax)


def test_errors_are_drawn_with_their_cost_and_number(ax: Axes) -> None:
    metric = MeanAveragePrecision("coco", class_names=["cat", "dog"])
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [90, 0, 99, 9]])
    found = {
        "boxes": torch.cat([boxes[:2], boxes[:1]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([1, 1, 1]),  # right, of a wrong class, said twice
    }
    metric.update([found], [{"boxes": boxes, "labels": torch.tensor([1, 2, 1])}])
    metric.compute()
    analysis = analyse(metric.evaluated, ["cat", "dog"])
    assert show.errors(analysis, ax) is ax
    names = [label.get_text() for label in ax.get_yticklabels()]
    costs = dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))
    assert costs == analysis.error_ap and costs["classification"] > 0
    written = dict(zip(names, [text.get_text().strip() for text in ax.texts], strict=True))
    assert written["duplicate"] == f"{costs['duplicate']:.3f} (1 error)"
    assert written["background"] == "0.000 (0 errors)"
    assert ax.get_title() == f"What errors cost; AP at IoU 0.5 is {analysis.base_ap:.3f}"
