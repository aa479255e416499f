"""The columns of a table of objects, found by the names that people give them; torch is not needed for it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from detkit.data.text_files import read_text
from detkit.errors import DataError

Box = tuple[float, float, float, float]

#: What a column holds -> the names that it goes by, without case, spaces and underscores.
COLUMNS = {
    "image": ("image", "filename", "file", "imageid", "imagepath", "path", "filepath", "imagename", "img", "imgpath"),
    "class": ("class", "label", "classname", "category", "labelname", "categoryname", "name"),
    "x1": ("xmin", "x1", "left", "bboxxmin"),
    "y1": ("ymin", "y1", "top", "bboxymin"),
    "x2": ("xmax", "x2", "right", "bboxxmax"),
    "y2": ("ymax", "y2", "bottom", "bboxymax"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "bboxw", "bboxwidth", "boxwidth"),
    "h": ("h", "bboxh", "bboxheight", "boxheight"),
    "box": ("bbox", "box"),
    "split": ("split", "set", "subset"),
}
#: The columns of a table without a line of names.
UNNAMED = ("image", "x1", "y1", "x2", "y2", "class")
BOXES = ({"x1", "y1", "x2", "y2"}, {"x", "y", "w", "h"}, {"x1", "y1", "w", "h"}, {"box"})


def is_table(text: str) -> bool:
    """Whether a text begins as a table of objects does."""
    return bool(_columns(next(csv.reader(io.StringIO(text), delimiter=_separator(text)), [])))


def _separator(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(",;\t|", key=first.count)


def _columns(names: Sequence[str]) -> dict[str, int]:
    """What -> its column; empty where the first line names no columns of an image and a box."""
    plain = [re.sub(r"[\s_\ufeff]", "", name).lower() for name in names]
    columns = {
        what: plain.index(name)
        for what, known in reversed(COLUMNS.items())
        for name in reversed(known)
        if name in plain
    }
    if "image" not in columns and len(plain) == 6 and all(map(_is_number, plain[1:5])):
        return {what: index for index, what in enumerate(UNNAMED)}
    return columns if "image" in columns and any(box <= set(columns) for box in BOXES) else {}


class Table(NamedTuple):
    """A table's rows with their numbers, and where its columns are."""

    file: str
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]

    @classmethod
    def read(cls, file: str) -> Table:
        """Read a table; raises DataError if it is none, or a column is missing."""
        text = read_text(file)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text))
        try:
            rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num}: {error}") from None
        if not rows:
            raise DataError(f"{file}: is empty")
        columns = _columns(rows[0][1])
        if not columns:
            raise DataError(
                f"{file}: the columns are {', '.join(rows[0][1])}; wanted are image, class, and xmin, ymin, xmax, ymax "
                "(or x, y, w, h, or bbox)"
            )
        named = any(not _is_number(rows[0][1][columns[name]]) for name in columns if name not in ("image", "class"))
        return cls(file, columns, rows[named:])

    def text(self, row: list[str], what: str) -> str:
        """A row's text in a column; "" where there is none."""
        index = self.columns.get(what, len(row))
        return row[index].strip() if index < len(row) else ""

    def box(self, row: list[str], where: str, normalized: bool) -> Box | None:
        """A row's box; None where it has none."""
        sizes = not {"x2", "y2"} <= set(self.columns)
        names = ("x1", "y1", "w", "h") if {"x1", "w"} <= set(self.columns) else ("x", "y", "w", "h")
        if "box" in self.columns:
            texts = self.text(row, "box").strip("[]()").replace(",", " ").split()
        else:
            texts = [self.text(row, name) for name in (names if sizes else ("x1", "y1", "x2", "y2"))]
        if not any(texts):
            return None
        if len(texts) != 4 or not all(map(_is_number, texts)):
            raise DataError(f"{where}: {', '.join(texts)!r} are not the four numbers of a box")
        a, b, c, d = map(float, texts)
        if not normalized and 0 < max(a, b, c, d) <= 1:
            raise DataError(
                f"{where}: the box {a:g}, {b:g}, {c:g}, {d:g} looks like shares of the image's sides (0 to 1), not "
                "pixels; give normalized: true, on the command line --data.normalized true"
            )
        return (a, b, a + c, b + d) if sizes else (a, b, c, d)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
