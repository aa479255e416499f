"""The page: what the templates are filled with."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from . import plots
from .advice import error_kinds
from .comparison import Comparison, compare
from .gallery import best_images, judge, worst_images
from .headline import headline
from .per_class import ClassRow, is_missing
from .pictures import Images, make_picture
from .svg import plain_label

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet
    from detkit.evaluation.sensitivity import Bin

MOST_CURVES = 12  # in sight; the others fold out
MOST_FOLDED_CURVES = 100
MOST_PAIRS = 12  # of confused classes
MOST_MATRIX_CLASSES = 80
MOST_DIFFERENCES = 24  # bars
LONGEST_NAME = 60  # of a class in a table; its title has all of it


def render_page(
    metrics: Mapping[str, Any],
    rows: Sequence[ClassRow],
    evaluation_set: EvaluationSet,
    analysis: Analysis,
    images: Images,
    title: str,
    baseline: Mapping[str, Any] | None = None,
) -> str:
    """The HTML of the report; the arguments are those of `write_report`, `metrics` with its analysis."""
    verdict = judge(evaluation_set, analysis)
    pictures = {
        which: [make_picture(evaluation_set, analysis, verdict, image, images, font_size) for image in chosen]
        # The best are shown smaller, so their labels are larger.
        for which, chosen, font_size in (("worst", worst_images(verdict), 14), ("best", best_images(verdict), 22))
    }
    comparison = None if baseline is None else compare(metrics, baseline)
    kinds = error_kinds(analysis, metrics.get("detector"))
    return _environment().get_template("index.html").render(
        title=title,
        metrics=metrics,
        date=metrics.get("date") or datetime.now().astimezone().isoformat(" ", "minutes"),
        numbers=headline(metrics),
        changes={e.name: e for e in comparison.numbers} if comparison and _same_kind(metrics, baseline) else {},
        data=_data_numbers(evaluation_set, analysis, verdict.shown),
        rows=rows,
        analysis=analysis,
        curves=_curves(analysis, rows),
        kinds=kinds,
        error_bars=plots.error_bars(
            {kind.name: kind.ap for kind in kinds}, analysis.false_positive_ap, analysis.false_negative_ap
        ),
        confusion=_confusion(analysis),
        sensitivity=_sensitivity(analysis),
        pictures=pictures,
        threshold=analysis.score_threshold,
        comparison=comparison,
        difference_bars=_difference_bars(comparison),
    )  # fmt: skip


def _data_numbers(s: EvaluationSet, analysis: Analysis, shown: np.ndarray) -> dict[str, Any]:
    to_find = ~s.ignored
    with_objects = len(np.unique(s.object_images[to_find]))
    return {
        "images": len(s),
        "empty": len(s) - with_objects,
        "objects": int(to_find.sum()),
        "difficult": int((s.difficult & ~s.crowd).sum()),
        "crowd": int(s.crowd.sum()),
        "detections": int(analysis.assignment.counted.sum()),
        "not_counted": int((~analysis.assignment.counted).sum()),
        "shown": int(shown.sum()),
        "classes": len(analysis.class_names),
    }


def _curves(analysis: Analysis, rows: Sequence[ClassRow]) -> dict[str, Any]:
    """The overview, and the curve of each class: the worst and the best in sight, the others folded."""
    names = analysis.class_names
    result: dict[str, Any] = {
        "overview": plots.curves_overview(analysis.curves, analysis.working_points, names),
        "none": [name for curve, name in zip(analysis.curves, names, strict=True) if not curve.num_objects],
        "groups": [],
        "folded": [],
        "left_out": 0,
    }
    order = [k for k, curve in enumerate(analysis.curves) if curve.num_objects]
    order.sort(key=lambda k: rows[k].ap_50)
    if len(order) < 2:
        return result

    def draw(chosen: Sequence[int]) -> list[tuple[ClassRow, Markup]]:
        svgs = plots.class_curves(
            [analysis.curves[k] for k in chosen],
            [analysis.working_points[k] for k in chosen],
            [names[k] for k in chosen],
        )
        return list(zip([rows[k] for k in chosen], svgs, strict=True))

    if len(order) <= MOST_CURVES:
        return {**result, "groups": [("Each class, the worst first", draw(order))]}
    half = MOST_CURVES // 2
    rest = order[half:-half]
    folded = rest[:MOST_FOLDED_CURVES]
    groups = [("The worst classes", draw(order[:half])), ("The best classes", draw(order[: -half - 1 : -1]))]
    return {**result, "groups": groups, "folded": draw(folded), "left_out": len(rest) - len(folded)}


def _confusion(analysis: Analysis) -> dict[str, Any]:
    """The heat map, and the pairs of classes that are confused most."""
    matrix, names = analysis.confusion, analysis.class_names
    count = len(names)
    between = matrix[:count, :count].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(int(i) // count, int(i) % count) for i in order if between.flat[i]]
    objects = matrix[:count].sum(axis=1)
    chosen = np.arange(count)
    if count > MOST_MATRIX_CLASSES:
        confused = between.sum(axis=0) + between.sum(axis=1)
        chosen = np.sort(np.argsort(-confused, kind="stable")[: MOST_MATRIX_CLASSES // 2])
    part = np.append(chosen, count)
    chosen_names = [*(names[k] for k in chosen), "background"]
    return {
        "any": bool(matrix.any()),
        "heat_map": plots.confusion_heat_map(matrix[np.ix_(part, part)], chosen_names) if matrix.any() else "",
        "size": len(part),
        "left_out": count - len(chosen),
        "pairs": [
            {"truth": names[i], "detected": names[j], "count": int(between[i, j]), "share": between[i, j] / objects[i]}
            for i, j in pairs
        ],
    }


def _same_kind(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a change of a number means anything at a glance."""
    return all(now.get(key) == before.get(key) for key in ("protocol", "data"))


def _side(area: float) -> float:
    return math.sqrt(max(area, 0.0))  # files may hold negative areas


def _sensitivity(analysis: Analysis) -> list[tuple[str, Markup, str]]:
    """(heading, plot, what the bins are) of size and shape."""

    def pixels(bins: Sequence[Bin]) -> str:
        return ", ".join(f"{b.name} {_range(_side(b.low), _side(b.high))}" for b in bins)

    quantiles = analysis.by_quantile
    total = sum(b.objects for b in quantiles)
    relative = f"Square root of the area in pixels: {pixels(quantiles)}." if total else "There are no objects."
    aspects = ", ".join(f"{b.name} {_range(b.low, b.high)}" for b in analysis.by_aspect)
    parts = (
        ("COCO's sizes", "size", analysis.by_size, f"Square root of the area in pixels: {pixels(analysis.by_size)}."),
        ("Sizes relative to this data set", "quantile", quantiles, relative),
        ("Shape", "aspect", analysis.by_aspect, f"Width divided by height: {aspects}."),
    )
    return [
        (heading, plots.bin_bars(bins, name, f"AP50 and recall: {heading}"), words)
        for heading, name, bins, words in parts
    ]


def _range(low: float, high: float) -> str:
    if not low:
        return f"below {high:.3g}"
    return f"above {low:.3g}" if high >= 1e5 else f"{low:.3g} to {high:.3g}"


def _difference_bars(comparison: Comparison | None) -> Markup | None:
    changed = [each for each in comparison.classes if each.better is not None] if comparison else []
    if not changed:
        return None
    shown = sorted(changed[:MOST_DIFFERENCES], key=lambda each: -each.change)
    return plots.difference_bars([each.name for each in shown], [each.change for each in shown])


def _change(value: Any) -> str:
    if is_missing(value):
        return "n/a"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("detkit.evaluation.report", "templates"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "unit": lambda value: "n/a" if is_missing(value) else f"{value:.3f}",
        "points": lambda value: "n/a" if is_missing(value) else f"{100 * value:.1f}",
        "change": _change,
        "percent": lambda value: (
            "n/a" if is_missing(value) else "<1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"
        ),
        "score": lambda value: "n/a" if is_missing(value) else f"{value:.2f}",
        "count": lambda value: "n/a" if is_missing(value) else f"{value:,}",
        "sort_key": lambda value: "" if is_missing(value) else f"{value:.6f}",
        "short": lambda text: plain_label(text, LONGEST_NAME),
        "or_na": lambda value: "n/a" if value is None or value == "" else value,
    }
    # The page's policy lets only this script run, whatever a name from someone's files may hold.
    script = environment.get_template("sort.js").render()
    environment.globals["script"] = Markup(script)
    environment.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment
