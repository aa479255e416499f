"""The label suspects of the report: rows for a table and a CSV, and pictures of the first ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.data.image_io import read_image
from detkit.errors import DataError
from detkit.evaluation.report.charts import plain_label
from detkit.evaluation.report.gallery import Images, Mark, image_path, jpeg_uri
from detkit.files import quote_formula

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet
    from detkit.evaluation.suspects import Suspect

SUSPECTS_FILE = "label_suspects.csv"
MAX_PICTURES = 24
MAX_ROWS = 100  # of the table in the page; the file has all
LONGEST_SIDE = 240  # of a picture, in pixels
MARGIN, LEAST_MARGIN = 0.6, 24.0  # around the boxes: a part of their longer side, and pixels
HEADING = (
    *("image", "kind", "suspicion", "label", "x1", "y1", "x2", "y2"),
    *("suggested_label", "suggested_x1", "suggested_y1", "suggested_x2", "suggested_y2", "score"),
)
Corners = tuple[float, float, float, float]  # x1 y1 x2 y2


@dataclass(frozen=True, slots=True)
class SuspectRow:
    """A suspect in words; a missing label has no `label`, a spurious one no `suggested`."""

    image: str  # the image's file, or its id where the file is not known
    kind: str
    suspicion: float
    label: str | None  # the class in the data
    box: Corners | None  # that of the label, in pixels of the image
    suggested: str | None  # the class of the detection that contradicts it
    suggested_box: Corners | None
    score: float | None  # of this detection


@dataclass(frozen=True, slots=True)
class SuspectPicture:
    """The part of an image around a suspect."""

    row: SuspectRow
    photo: str | None  # the JPEG as a data URI; None where the file cannot be read
    width: int  # of the picture, in pixels
    height: int
    marks: list[Mark]


def suspect_rows(
    suspects: Sequence[Suspect], evaluation_set: EvaluationSet, analysis: Analysis, images: Images
) -> list[SuspectRow]:
    """The suspects in words, in their order; `images` as in `write_report`."""
    s, names = evaluation_set, analysis.class_names
    rows = []
    for suspect in suspects:
        image_id, label, found = s.image_ids[suspect.image], suspect.label, suspect.detection
        path = image_path(images, image_id)
        rows.append(
            SuspectRow(
                image=Path(path).name if path is not None else "" if image_id is None else str(image_id),
                kind=suspect.kind,
                suspicion=suspect.suspicion,
                label=None if label < 0 else names[s.labels[label] - 1],
                box=None if label < 0 else _corners(s.boxes[label]),
                suggested=None if found < 0 else names[s.detected_labels[found] - 1],
                suggested_box=None if found < 0 else _corners(s.detected_boxes[found]),
                score=None if found < 0 else float(s.scores[found]),
            )
        )
    return rows


def suspects_csv(rows: Sequence[SuspectRow]) -> str:
    """The rows as CSV with a heading; names go through `quote_formula`, and what a row does not have is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADING)
    for row in rows:
        label, suggested = (_cells(*each) for each in ((row.label, row.box), (row.suggested, row.suggested_box)))
        score = "" if row.score is None else f"{row.score:.4f}"
        writer.writerow([_text(row.image), row.kind, f"{row.suspicion:.4f}", *label, *suggested, score])
    return buffer.getvalue()


def suspect_pictures(
    rows: Sequence[SuspectRow], suspects: Sequence[Suspect], evaluation_set: EvaluationSet, images: Images
) -> list[SuspectPicture]:
    """Pictures of the first suspects: the label dashed, the detection that contradicts it in a full line."""
    pictures = []
    for row, suspect in list(zip(rows, suspects, strict=True))[:MAX_PICTURES]:
        path = image_path(images, evaluation_set.image_ids[suspect.image])
        try:
            image = None if path is None else read_image(path)
        except (DataError, OSError, ValueError):
            image = None
        pictures.append(_picture(row, image))
    return pictures


def _picture(row: SuspectRow, image: np.ndarray | None) -> SuspectPicture:
    from PIL import Image

    boxes = np.array([box for box in (row.box, row.suggested_box) if box is not None])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = max(MARGIN * float((high - low).max()), LEAST_MARGIN)
    low, high = np.floor(np.maximum(low - margin, 0)), np.ceil(high + margin)
    if image is not None:
        high = np.minimum(high, image.shape[1::-1])
        low = np.minimum(low, high - 1)
    scale = LONGEST_SIDE / float((high - low).max())
    width, height = (max(1, round(float(side) * scale)) for side in high - low)
    photo = None
    if image is not None:
        (x1, y1), (x2, y2) = low.astype(int).tolist(), high.astype(int).tolist()
        photo = jpeg_uri(Image.fromarray(image[y1:y2, x1:x2]).resize((width, height), Image.Resampling.LANCZOS))
    named = (("missed", row.label, row.box), ("hit", row.suggested, row.suggested_box))
    marks = []
    for kind, name, box in named:
        if box is not None:
            x1, y1, x2, y2 = ((np.array(box) - np.tile(low, 2)) * scale).round(1).tolist()
            marks.append(Mark(kind, plain_label(str(name)), x1, y1, round(x2 - x1, 1), round(y2 - y1, 1), None))
    return SuspectPicture(row, photo, width, height, marks)


def _corners(box: np.ndarray) -> Corners:
    x, y, width, height = box.tolist()
    return x, y, x + width, y + height


def _cells(name: str | None, box: Corners | None) -> list[str]:
    return [""] * 5 if name is None or box is None else [_text(name), *(f"{value:.1f}" for value in box)]


def _text(name: str) -> str:
    return quote_formula(name).replace("\r", " ")  # which csv does not quote, and a spreadsheet takes for a new row
