"""A page with some pictures of each kind of finding in a data set, in the look of the report."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detkit.data.annotations import Annotations
from detkit.data.checks import Check
from detkit.errors import DataError
from detkit.evaluation.report.page import environment

PICTURES, TEXTS = 12, 30  # of a kind
SIDE = 320  # of a picture, in pixels
CORNERS = re.compile(r"\[(-?[\d.e+]+(?:, -?[\d.e+]+){3})\]")  # of a box in a message
MARKED, OTHER = "#e23b4e", "#8a929c"  # the boxes that are meant, and the others


def write_contact_sheet(
    path: Path,
    groups: Mapping[str, Sequence[Check]],
    kinds: Mapping[str, tuple[str, str]],
    splits: Mapping[str, Annotations],
    title: str,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        groups: kind -> its findings.
        kinds: kind -> what detkit does, and how to mend it.
        splits: the sets that the findings' images and boxes are in.
        title: of the page.
    """
    finder = {split: _Places(annotations) for split, annotations in splits.items()}
    content = [
        {
            "kind": kind,
            "name": kind.replace("_", " "),
            "count": sum(check.finding.count for check in group),
            "does": kinds[kind][0],
            "mend": kinds[kind][1],
            **_examples(group, splits, finder),
        }
        for kind, group in groups.items()
    ]
    page = environment().get_template("contact_sheet.html").render(title=title, groups=content)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


class _Places:
    """The images of a set by the names that findings have."""

    def __init__(self, annotations: Annotations) -> None:
        paths = [annotations.path(index) for index in range(len(annotations))]
        self._by_path = {path: index for index, path in enumerate(paths)}
        self._by_stem = {Path(path).stem: index for index, path in enumerate(paths)}

    def find(self, file: str) -> int | None:
        """The image of a file, which is the image or an annotation of its name."""
        return self._by_path.get(file, self._by_stem.get(Path(file).stem))


def _examples(
    group: Sequence[Check], splits: Mapping[str, Annotations], places: Mapping[str, _Places]
) -> dict[str, list[Any]]:
    pictures: list[dict[str, Any]] = []
    texts: list[str] = []
    for check in group:
        text = str(check.finding) if check.finding.file else check.finding.message
        for part in splits.values():
            text = text.replace(os.path.join(part.root, ""), "")
        index = check.image
        if index is None and check.split in places:
            index = places[check.split].find(check.finding.file)
        picture = None
        if index is not None and len(pictures) < PICTURES:
            picture = _picture(splits[check.split], index, check.rows, check.finding.message)
        if picture is not None:
            pictures.append({**picture, "text": text})
        elif len(texts) < TEXTS:
            texts.append(text)
    return {"pictures": pictures, "texts": texts}


def _picture(annotations: Annotations, index: int, rows: Sequence[int], message: str) -> dict[str, Any] | None:
    """The image with its boxes, those that are meant in red; None where it cannot be read.

    A box that was left out is that of the message.
    """
    try:
        image = Image.fromarray(annotations.image(index))
    except DataError:
        return None
    scale = min(1.0, SIDE / max(image.size))
    image = image.resize([max(round(side * scale), 1) for side in image.size])
    pen = ImageDraw.Draw(image)
    start, end = annotations.offsets[index : index + 2].tolist()
    for row in sorted(range(start, end), key=lambda row: row in rows):  # those that are meant come last, on top
        x1, y1, x2, y2 = (annotations.boxes[row].astype(np.float64) * scale).tolist()
        meant = row in rows
        pen.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=MARKED if meant else OTHER, width=3 if meant else 1)
    if not rows and (corners := CORNERS.search(message)):
        box = np.clip([float(value) * scale for value in corners[1].split(", ")], -10, 2 * SIDE)
        pen.rectangle(
            (*(np.minimum(box[:2], box[2:]) - 3), *(np.maximum(box[:2], box[2:]) + 3)), outline=MARKED, width=3
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    jpeg = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"jpeg": jpeg, "width": image.width, "height": image.height}
