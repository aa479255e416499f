"""The plots: what is in their SVG."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from detkit.evaluation.coco import average_precision
from detkit.evaluation.curves import ClassCurve, WorkingPoint, best_f1
from detkit.evaluation.report import plots
from detkit.evaluation.report.svg import KIND_COLOURS, VARIABLES, drawing, new_figure, plain_label, to_svg
from detkit.evaluation.sensitivity import Bin
from tests.evaluation.report.pages import NASTY

NOTHING = WorkingPoint(*[math.nan] * 4)


def curve(hits: list[bool], objects: int, label: int = 1) -> ClassCurve:
    found = np.cumsum(hits)
    recall = found / objects if objects else np.full(len(hits), np.nan)
    return ClassCurve(label, np.linspace(1, 0, len(hits)), found / np.arange(1, len(hits) + 1), recall, objects)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_the_mean_of_the_drawn_curve_is_the_ap() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 400):
        hits = (rng.random(count) < 0.6).tolist()
        objects = sum(hits) + int(rng.integers(1, 5))
        expected = average_precision(np.array(hits), objects)
        assert plots.envelope(curve(hits, objects)).mean() == pytest.approx(expected, abs=1e-12)
    assert plots.envelope(curve([], 3)).tolist() == [0] * 101
    assert plots.envelope(curve([True], 0)).tolist() == [0] * 101


def test_the_working_point_is_on_the_drawn_curve() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        one = curve((rng.random(30) < 0.5).tolist(), 25)
        point = best_f1(one)
        assert plots.envelope(one, np.array([point.recall]))[0] == pytest.approx(point.precision)


def test_a_curve_of_many_detections_is_thin() -> None:
    rng = np.random.default_rng(2)
    one = curve((rng.random(200_000) < 0.5).tolist(), 150_000)
    [svg] = plots.class_curves([one], [best_f1(one)], ["a"])
    assert len(svg) < 6_000
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 80])
def test_few_classes_are_named_and_many_are_behind_their_mean(count: int) -> None:
    curves = [curve([True, k % 2 == 0, True], 4, k + 1) for k in range(count)]
    svg = plots.curves_overview(curves, [best_f1(each) for each in curves], [f"name{k}" for k in range(count)])
    words = texts(svg)
    assert sum("name" in word for word in words) == (count if count <= 8 else 0)
    assert ("mean of classes" in words) == (count > 1)
    assert {"recall", "precision"} <= set(words)


def test_names_are_kept_as_text() -> None:
    curves = [curve([True, False], 2, k + 1) for k in range(len(NASTY))]
    svg = plots.curves_overview(curves, [best_f1(each) for each in curves], NASTY)
    words = [word.lstrip("\N{ZERO WIDTH SPACE}") for word in texts(svg)]
    assert all(plain_label(name) in words for name in NASTY)
    assert plain_label("x" * 300) == "x" * 23 + "…"
    assert plain_label("a\nb\udc80\x07") == "a\ufffdb\ufffd\ufffd"


def test_errors_are_bars_in_their_colours_with_points() -> None:
    kinds = dict(zip(KIND_COLOURS, [0.1, 0.052, 0.0, math.nan, 0.2, 0.3], strict=True))
    svg = plots.error_bars(kinds, 0.25, math.nan)
    words = texts(svg)
    assert {"10.0", "5.2", "0.0", "20.0", "30.0", "25.0", *kinds, "all false positives"} <= set(words)
    assert words.count("n/a") == 2
    for kind in kinds:
        assert f"var(--{kind})" in svg


def test_bins_without_objects_say_so() -> None:
    bins = [Bin("small", 0, 1024, 1_250, 0.5, 0.25), Bin("large", 1024, math.inf, 0, math.nan, math.nan)]
    words = texts(plots.bin_bars(bins, "size", "by size"))
    assert {"0.50", "0.25", "small", "1250", "large", "0"} <= set(words)
    assert words.count("n/a") == 2


def test_the_confusion_matrix_has_its_counts_where_there_is_room() -> None:
    matrix = np.array([[123_456, 3, 0], [0, 7, 11], [13, 0, 0]])
    words = texts(plots.confusion_heat_map(matrix, ["cat", "dog", "background"]))
    assert {"123k", "3", "7", "11", "13", "cat", "dog", "background", "detected as", "ground truth"} <= set(words)
    many = np.random.default_rng(0).integers(0, 99, (81, 81))
    svg = plots.confusion_heat_map(many, [f"class {k}" for k in range(81)])
    assert len(svg) < 60_000
    assert len(texts(svg)) == 2 * 81 + 2


def test_differences_go_both_ways() -> None:
    svg = plots.difference_bars(["a", "b"], [0.0512, -0.031])
    assert {"+5.1", "\N{MINUS SIGN}3.1", "a", "b"} <= set(texts(svg))
    assert "var(--good)" in svg
    assert "var(--bad)" in svg


def test_colours_are_the_page_s_and_ids_the_figure_s() -> None:
    one = curve([True, False, True], 3)
    svgs = plots.class_curves([one, curve([True], 2, 2)], [best_f1(one), NOTHING], ["a", "b"])
    svgs.append(plots.curves_overview([one], [best_f1(one)], ["a"]))
    ids = [each for svg in svgs for each in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        assert not re.search(r"#0[0-9a-f]{5}\b", svg)  # no stand-in colour is left
        assert set(re.findall(r"var\((--[\w-]+)\)", svg)) <= set(VARIABLES.values())
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)
        assert "<style" not in svg
        assert "font-family" not in svg


def test_a_name_that_looks_like_svg_is_left_as_it_is() -> None:
    name = 'x="1.23456" #010101 id="a"'
    with drawing("odd"):
        figure, axes = new_figure(2, 2)
        axes.set_title(name)
        svg = to_svg(figure, "odd", f"{name} <&>")
    assert name in texts(svg)
    assert ElementTree.fromstring(svg).get("aria-label") == f"{name} <&>"
