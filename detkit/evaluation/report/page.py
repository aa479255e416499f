"""The report of an evaluation: the page, the numbers, and the numbers of each class as files."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from detkit.evaluation.report.advice import error_kinds, first_advice
from detkit.evaluation.report.charts import Curve, draw_curve, draw_matrix, draw_overview, plain_label, short_count
from detkit.evaluation.report.comparison import Comparison, compare
from detkit.evaluation.report.gallery import Images, assess_images, best_images, make_picture, worst_images
from detkit.evaluation.report.numbers import ClassRow, class_rows, is_missing, metric_numbers, to_csv
from detkit.evaluation.report.suspect_list import (
    MAX_ROWS,
    SUSPECTS_FILE,
    suspect_pictures,
    suspect_rows,
    suspects_csv,
)
from detkit.evaluation.report.training import as_data_uris
from detkit.evaluation.suspects import TRUSTED, find_suspects
from detkit.files import to_json, write_json, write_text

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet
    from detkit.evaluation.sensitivity import Bin

MAX_CURVES = 12  # that are shown at once; the others are in a part that can be opened
MAX_HIDDEN_CURVES = 100
MAX_PAIRS = 12  # of confused classes
MAX_MATRIX_CLASSES = 80
MAX_DIFFERENCES = 24  # bars
MAX_NAME_LENGTH = 60  # of a class in a table; its title has the whole name


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    evaluation_set: EvaluationSet,
    analysis: Analysis,
    images: Images,
    title: str,
    baseline: Mapping[str, Any] | None = None,
    training: Mapping[str, Path] | None = None,
) -> Path:
    """Writes index.html, metrics.json, per_class.csv and label_suspects.csv into a folder, each as a whole.

    Args:
        folder: created where missing.
        metrics: the metric's numbers in 0..1 by torchmetrics' names, `map_per_class` by class name, `protocol`, and
            where known `checkpoint` or `detections` (their file), `data`, `split`, `detkit` (its version) and `date`,
            which the page shows, `detector` (the name of its class), which the advice depends on, and `intervals` and
            `differences`, as `detkit.tools.evaluate.with_intervals` makes them.
        images: the path of an image file by image id: a mapping or a function. Where a file is missing or cannot be
            read, its boxes are drawn on an empty background.
        title: what was evaluated.
        baseline: the content of an earlier `metrics.json` to compare with.
        training: caption -> a picture that the fit has drawn; one that is missing is left out.

    Returns:
        The path of `index.html`, a single file that needs no other file and no network.
    """
    metrics = {**to_json(metrics), "analysis": analysis.to_dict()}
    rows = class_rows(metrics, evaluation_set, analysis)
    assessment = assess_images(evaluation_set, analysis)
    pictures = {
        name: [make_picture(assessment, image, images, font_size) for image in chosen]
        # The best images are shown smaller, so their labels are larger.
        for name, chosen, font_size in (("worst", worst_images(assessment), 14), ("best", best_images(assessment), 22))
    }
    suspects = find_suspects(evaluation_set, analysis)
    suspected = suspect_rows(suspects, evaluation_set, analysis, images)
    comparison = None if baseline is None else compare(metrics, baseline)
    comparable = baseline is not None and all(metrics.get(key) == baseline.get(key) for key in ("protocol", "data"))
    page = environment().get_template("index.html").render(
        title=title,
        metrics=metrics,
        date=metrics.get("date") or datetime.now().astimezone().isoformat(" ", "minutes"),
        numbers=metric_numbers(metrics),
        changes={difference.name: difference for difference in comparison.numbers} if comparison and comparable else {},
        data=_data_numbers(evaluation_set, analysis, assessment.shown),
        rows=rows,
        analysis=analysis,
        curves=_curves(analysis, rows),
        intervals=metrics.get("intervals") or {},
        kinds=error_kinds(analysis, metrics.get("detector")),
        first_advice=first_advice(metrics, analysis),
        trusted=analysis.base_ap >= TRUSTED,
        least_trusted=TRUSTED,
        suspects={
            "rows": suspected,
            "pictures": suspect_pictures(suspected, suspects, evaluation_set, images),
        },
        suspects_file=SUSPECTS_FILE,
        max_suspects=MAX_ROWS,
        confusion=_confusion(analysis),
        sensitivity=_sensitivity(analysis),
        pictures=pictures,
        threshold=analysis.score_threshold,
        comparison=comparison,
        differences=_largest_differences(comparison),
        training=as_data_uris(training or {}),
    )  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "per_class.csv", to_csv(rows))
    write_text(folder / SUSPECTS_FILE, suspects_csv(suspected))  # also without any: an earlier file is replaced
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _data_numbers(s: EvaluationSet, analysis: Analysis, shown: np.ndarray) -> dict[str, int]:
    counted = ~s.ignored
    return {
        "images": len(s),
        "empty": len(s) - len(np.unique(s.object_images[counted])),
        "objects": int(counted.sum()),
        "difficult": int((s.difficult & ~s.crowd).sum()),
        "crowd": int(s.crowd.sum()),
        "detections": int(analysis.assignment.counted.sum()),
        "not_counted": int((~analysis.assignment.counted).sum()),
        "shown": int(shown.sum()),
        "classes": len(analysis.class_names),
    }


def _curves(analysis: Analysis, rows: Sequence[ClassRow]) -> dict[str, Any]:
    """The overview, and the curve of each class: the worst and the best shown, the others hidden at first."""
    names = analysis.class_names
    order = [k for k, curve in enumerate(analysis.curves) if curve.num_objects]
    order.sort(key=lambda k: rows[k].ap_50)
    groups, rest = [("Each class, the worst first", order)] if len(order) > 1 else [], []
    if len(order) > MAX_CURVES:
        half = MAX_CURVES // 2
        groups = [("The worst classes", order[:half]), ("The best classes", order[: -half - 1 : -1])]
        rest = order[half:-half]

    def draw(chosen: Sequence[int]) -> list[tuple[ClassRow, Curve]]:
        return [(rows[k], draw_curve(analysis.curves[k], analysis.working_points[k], names[k])) for k in chosen]

    return {
        "overview": draw_overview(analysis.curves, analysis.working_points, names),
        "none": [name for curve, name in zip(analysis.curves, names, strict=True) if not curve.num_objects],
        "groups": [(heading, draw(chosen)) for heading, chosen in groups],
        "hidden": draw(rest[:MAX_HIDDEN_CURVES]),
        "left_out": len(rest[MAX_HIDDEN_CURVES:]),
    }


def _confusion(analysis: Analysis) -> dict[str, Any]:
    """The matrix to draw, and the pairs of classes that are confused most."""
    matrix, names = analysis.confusion, analysis.class_names
    count = len(names)
    between = matrix[:count, :count].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [(int(i) // count, int(i) % count) for i in order if between.flat[i]]
    objects = matrix[:count].sum(axis=1)
    chosen = np.arange(count)
    if count > MAX_MATRIX_CLASSES:
        confused = between.sum(axis=0) + between.sum(axis=1)
        chosen = np.sort(np.argsort(-confused, kind="stable")[: MAX_MATRIX_CLASSES // 2])
    part = np.append(chosen, count)
    return {
        "matrix": draw_matrix(matrix[np.ix_(part, part)], [*(names[k] for k in chosen), "background"]),
        "left_out": count - len(chosen),
        "pairs": [
            {"truth": names[i], "detected": names[j], "count": int(between[i, j]), "share": between[i, j] / objects[i]}
            for i, j in pairs
        ],
    }


def _sensitivity(analysis: Analysis) -> list[tuple[str, str, list[tuple[Bin, str]]]]:
    """(heading, what the ranges are of, the bins with their ranges) of size and shape."""
    side = "square root of the area, in pixels"
    parts = (
        ("COCO's sizes", side, 0.5, analysis.by_size),
        ("Sizes relative to this data set", side, 0.5, analysis.by_quantile),
        ("Shape", "width divided by height", 1.0, analysis.by_aspect),
    )
    return [
        (heading, unit, [(row, _range(row, power) if any(each.objects for each in bins) else "") for row in bins])
        for heading, unit, power, bins in parts
    ]


def _range(part: Bin, power: float) -> str:
    low, high = (max(value, 0.0) ** power for value in (part.low, part.high))  # annotations may have negative areas
    if not low:
        return f"below {high:.3g}"
    return f"above {low:.3g}" if high >= 1e5 else f"{low:.3g} to {high:.3g}"


def _largest_differences(comparison: Comparison | None) -> list[tuple[str, float]]:
    """(class, difference of AP), the largest gain first."""
    changed = [row for row in comparison.classes if row.better is not None] if comparison else []
    return [(row.name, row.change) for row in sorted(changed[:MAX_DIFFERENCES], key=lambda row: -row.change)]


def _change(value: Any) -> str:
    if is_missing(value):
        return "n/a"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


@cache
def environment() -> Environment:
    """Jinja's environment of the report's pages: names of other people's files are escaped."""
    made = Environment(
        loader=PackageLoader("detkit.evaluation.report", "templates"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "unit": lambda value: "n/a" if is_missing(value) else f"{value:.3f}",
        "points": lambda value: "n/a" if is_missing(value) else f"{100 * value:.1f}",
        "change": _change,
        "interval": lambda pair: "n/a" if is_missing(pair[0]) else f"[{pair[0]:.3f}, {pair[1]:.3f}]",
        "percent": lambda value: (
            "n/a" if is_missing(value) else "<1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"
        ),
        "score": lambda value: "n/a" if is_missing(value) else f"{value:.2f}",
        "count": lambda value: "n/a" if is_missing(value) else f"{value:,}",
        "short_count": short_count,
        "known": lambda value: 0.0 if is_missing(value) else value,
        "share": lambda value: "0" if is_missing(value) else f"{value:.3f}",
        "sort_key": lambda value: "" if is_missing(value) else f"{value:.6f}",
        "short": lambda text: plain_label(text, MAX_NAME_LENGTH),
        "or_na": lambda value: "n/a" if value is None or value == "" else value,
    }
    # The page's security policy allows this script only, whatever names from other people's files contain.
    script = made.get_template("sort.js").render()
    made.globals["script"] = Markup(script)
    made.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return made
