"""The report's files: the page, the numbers, and the numbers of each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.files import plain, write_beside, write_json

from .page import render_page
from .per_class import class_rows, to_csv
from .pictures import Images

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    evaluation_set: EvaluationSet,
    analysis: Analysis,
    images: Images,
    title: str,
    baseline: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `index.html`, `metrics.json` and `per_class.csv` into a folder, each beside its place and renamed.

    Args:
        folder: made where missing.
        metrics: the metric's numbers in 0..1 by torchmetrics' names, `map_per_class` by class name, `protocol`, and
            where known `checkpoint` or `detections` (their file), `data`, `split`, `detkit` (its version) and `date`,
            which the page shows, and `detector` (its class), which the advice is for.
        evaluation_set: objects and detections.
        analysis: of them.
        images: where the file of an image is, by its id: a mapping or a function. A file that is missing or cannot be
            read is drawn as an empty ground.
        title: what was evaluated.
        baseline: the content of an earlier `metrics.json` to compare with.

    Returns:
        The path of `index.html`, one file that needs no other and no network.
    """
    content = {**plain(metrics), "analysis": analysis.to_dict()}
    rows = class_rows(content, evaluation_set, analysis)
    page = render_page(content, rows, evaluation_set, analysis, images, title, baseline)
    write_json(folder / "metrics.json", content)
    write_beside(folder / "per_class.csv", to_csv(rows))
    write_beside(folder / "index.html", page)
    return folder / "index.html"
