"""The columns of a table of objects, found by the names that people give them; torch is not needed for it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from detkit.data.input_files import LARGEST, short_repr
from detkit.data.text_files import read_text
from detkit.data.voc_files import is_image_name
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
    "cx": ("xcenter", "cx", "centerx", "xcentre"),
    "cy": ("ycenter", "cy", "centery", "ycentre"),
    "box": ("bbox", "box"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "split": ("split", "set", "subset"),
}
#: What programs write where there is no value.
NOTHING = ("", "nan", "na", "<na>", "none", "null")
#: The columns of a table without a line of names.
UNNAMED = ("image", "x1", "y1", "x2", "y2", "class")
#: The columns that may hold a box: corners, or a corner or the centre and the sides, or all in one.
BOXES = (("box",), ("x1", "y1", "x2", "y2"), ("x1", "y1", "w", "h"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h"))


def is_table(text: str) -> bool:
    """Whether a text begins as a table of objects does."""
    first = next((line for line in _lines(text) if line.strip()), "")
    return bool(_columns(next(csv.reader([first], delimiter=_separator(text)), [])))


def _lines(text: str) -> list[str]:
    """The lines; those before the table that are comments, or Excel's `sep=;`, are empty."""
    lines = io.StringIO(text.removeprefix("\ufeff"), newline=None).read().split("\n")
    begin = next((index for index, line in enumerate(lines) if line and not line.startswith(("#", "sep="))), 0)
    return [""] * begin + lines[begin:]


def _separator(text: str) -> str:
    first = next((line for line in _lines(text) if line.strip()), "")
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
    if "image" not in columns and len(plain) == len(UNNAMED) and _is_row(names):
        return {what: index for index, what in enumerate(UNNAMED)}
    has_corner = {"x", "y"} <= set(columns) or {"cx", "cy"} <= set(columns) or {"x1", "y1"} <= set(columns)
    if has_corner and not {"x2", "w"} & set(columns) and {"width", "height"} <= set(columns):
        columns |= {"w": columns.pop("width"), "h": columns.pop("height")}  # there is no other side of the box
    return columns if "image" in columns and any(set(box) <= set(columns) for box in BOXES) else {}


def _is_row(row: Sequence[str]) -> bool:
    """Whether a line is a row of a table without a line of names: four numbers, or an image without a box."""
    return all(map(_is_number, row[1:5])) or (is_image_name(row[0]) and not any(row[1:]))


class Table(NamedTuple):
    """A table's rows with their numbers, and where its columns are."""

    file: str
    columns: dict[str, int]
    rows: list[tuple[int, list[str]]]
    separator: str = ","

    @classmethod
    def read(cls, file: str) -> Table:
        """Read a table; raises DataError if it is none, or a column is missing."""
        text = read_text(file)
        separator = _separator(text)
        reader = csv.reader((line + "\n" for line in _lines(text)), delimiter=separator, skipinitialspace=True)
        try:
            rows = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
        except csv.Error as error:
            raise DataError(f"{file}: line {reader.line_num}: {error}") from None
        if not rows:
            raise DataError(f"{file}: is empty")
        columns = _columns(rows[0][1])
        if not columns:
            raise DataError(
                f"{file}: the columns are {short_repr(', '.join(rows[0][1]))}; wanted are image, class, and xmin, "
                "ymin, xmax, ymax (or x, y, w, h, or bbox)"
            )
        return cls(file, columns, rows[not _is_row(rows[0][1]) :], separator)

    def text(self, row: list[str], what: str) -> str:
        """A row's text in a column; "" where there is none."""
        index = self.columns.get(what, len(row))
        return row[index].strip() if index < len(row) else ""

    def box(self, row: list[str], where: str, normalized: bool) -> Box | None:
        """A row's box; None where it has none."""
        names = next(names for names in BOXES if set(names) <= set(self.columns))
        texts = [self.text(row, name) for name in names]
        if names == ("box",):
            texts = texts[0].strip("[]()").replace(",", " ").split()
        elif self.separator == ";":  # where the semicolon separates, a comma is a decimal point
            texts = [text.replace(",", ".") for text in texts]
        if not any(text.lower() not in NOTHING for text in texts):
            return None
        if len(texts) != 4 or not all(map(_is_number, texts)):
            raise DataError(f"{where}: {short_repr(', '.join(texts))} are not the four numbers of a box")
        a, b, c, d = map(float, texts)
        if not normalized and 0 < max(a, b, c, d) <= 1:
            raise DataError(
                f"{where}: the box {a:g}, {b:g}, {c:g}, {d:g} looks like shares of the image's sides (0 to 1), not "
                "pixels; give normalized: true, on the command line --data.normalized true"
            )
        if "x2" in names:
            return (a, b, c, d)
        return (a - c / 2, b - d / 2, a + c / 2, b + d / 2) if "cx" in names else (a, b, a + c, b + d)

    def size(self, row: list[str]) -> tuple[int, int]:
        """(width, height) of the image in a row; 0 where it does not say."""
        texts = [self.text(row, name) for name in ("width", "height")]
        width, height = (int(float(text)) if _is_number(text) and 0 < float(text) < LARGEST else 0 for text in texts)
        return width, height


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
