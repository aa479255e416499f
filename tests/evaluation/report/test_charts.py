"""The charts: their points, and what the page makes of them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from detkit.evaluation.coco import average_precision
from detkit.evaluation.curves import ClassCurve, WorkingPoint, best_f1
from detkit.evaluation.report import charts
from detkit.evaluation.report.advice import WORDS, ErrorKind
from detkit.evaluation.report.page import environment
from tests.evaluation.report.pages import NASTY


def curve(hits: list[bool], objects: int, label: int = 1) -> ClassCurve:
    found = np.cumsum(hits)
    recall = found / objects if objects else np.full(len(hits), np.nan)
    return ClassCurve(label, np.linspace(1, 0, len(hits)), found / np.arange(1, len(hits) + 1), recall, objects)


def overview(names: list[str]) -> charts.Overview:
    curves = [curve([True, k % 2 == 0, True], 4, k + 1) for k in range(len(names))]
    return charts.draw_overview(curves, [best_f1(one) for one in curves], names)


def rendered(macro: str, *arguments: object) -> ElementTree.Element:
    """What a macro of charts.html draws."""
    return ElementTree.fromstring(getattr(environment().get_template("charts.html").module, macro)(*arguments))


def texts(element: ElementTree.Element) -> list[str]:
    return [text.strip() for text in element.itertext() if text.strip()]


def test_the_mean_of_the_drawn_curve_is_the_ap() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 400):
        hits = (rng.random(count) < 0.6).tolist()
        objects = sum(hits) + int(rng.integers(1, 5))
        expected = average_precision(np.array(hits), objects)
        assert curve(hits, objects).best_precision(charts.RECALLS).mean() == pytest.approx(expected, abs=1e-12)
    assert curve([], 3).best_precision(charts.RECALLS).tolist() == [0] * 101
    assert curve([True], 0).best_precision(charts.RECALLS).tolist() == [0] * 101


def test_the_best_f1_is_on_the_drawn_curve() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        one = curve((rng.random(30) < 0.5).tolist(), 25)
        point = best_f1(one)
        assert one.best_precision([point.recall])[0] == pytest.approx(point.precision)


def test_a_curve_is_drawn_from_the_upper_left_as_far_as_it_reaches() -> None:
    one = curve([True, False, True], 4)
    drawn = charts.draw_curve(one, best_f1(one), "a", (100, 60))
    assert drawn.points == "0,0 25,0 26,20 50,20"
    assert drawn.dot == (50, 20)
    assert charts.draw_curve(curve([False], 4), WorkingPoint(*[math.nan] * 4), "a").dot is None


def test_a_curve_of_many_detections_is_small() -> None:
    one = curve((np.random.default_rng(2).random(200_000) < 0.5).tolist(), 150_000)
    assert len(charts.draw_curve(one, best_f1(one), "a").points) < 1_500


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 80])
def test_few_classes_have_a_colour_and_a_name_and_many_are_behind_their_mean(count: int) -> None:
    figure = rendered("curves_overview", overview([f"name{k}" for k in range(count)]), charts.FEW_CLASSES)
    words = texts(figure)
    assert sum("name" in word for word in words) == (count if count <= 8 else 0)
    assert ("mean of classes" in words) == (count > 1)
    assert {"recall", "precision"} <= set(words)
    lines = [element.get("class") for element in figure.iter("g")]
    assert lines == ([f"line s-{k + 1}" for k in range(count)] if count <= 8 else ["line faint"] * count)


def test_names_are_kept_as_text() -> None:
    words = texts(rendered("curves_overview", overview(NASTY), charts.FEW_CLASSES))
    assert all(charts.plain_label(name, 60) in words for name in NASTY)
    assert charts.plain_label("x" * 300) == "x" * 23 + "…"
    assert charts.plain_label("a\nb\udc80\x07") == "a\ufffdb\ufffd\ufffd"


def test_errors_are_bars_in_their_colours_with_points() -> None:
    kinds = [ErrorKind(*row, 1, "", "", "") for row in zip(WORDS, [0.1, 0.052, 0.0, math.nan, 0.2, 0.4], strict=True)]
    table = rendered("error_bars", kinds, {"all false positives": 0.25, "all missed objects": math.nan})
    words = texts(table)
    assert {"10.0", "5.2", "0.0", "20.0", "40.0", "25.0", *WORDS, "all false positives"} <= set(words)
    assert words.count("n/a") == 2
    bars = {bar.get("class"): bar.get("style") for bar in table.iter("span")}
    assert set(bars) == {"fill", *(f"fill k-{kind}" for kind in WORDS)}
    assert bars["fill k-classification"] == "--share:0.250"


def test_the_confusion_matrix_has_its_counts_where_there_is_room() -> None:
    matrix = np.array([[123_456, 3, 0], [0, 7, 11], [13, 0, 0]])
    names = ["cat", "dog", "background"]
    words = texts(rendered("confusion_matrix", charts.draw_matrix(matrix, names)))
    assert {"123k", "3", "7", "11", "13", *names} <= set(words)
    shades = charts.draw_matrix(matrix, names).shades
    assert shades == {1.0: "M0 0h1v1h-1zM0 2h1v1h-1z", 0.05: "M1 0h1v1h-1z", 0.4: "M1 1h1v1h-1z", 0.6: "M2 1h1v1h-1z"}
    many = charts.draw_matrix(np.random.default_rng(0).integers(0, 99, (81, 81)), [f"class {k}" for k in range(81)])
    svg = rendered("confusion_matrix", many)
    assert len(ElementTree.tostring(svg)) < 130_000
    assert len(texts(svg)) == 2 * 81 + 2


def test_differences_go_both_ways() -> None:
    table = rendered("difference_bars", [("a", 0.0512), ("b", -0.0256)])
    assert texts(table)[1:] == ["a", "+5.1", "b", "\N{MINUS SIGN}2.6"]
    bars = [(bar.get("class"), bar.get("style")) for bar in table.iter("span") if bar.get("style")]
    assert bars == [("fill better", "--share:1.000"), ("fill worse", "--share:0.500")]
