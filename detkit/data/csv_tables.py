"""Data sets in a table: a row an object, with the image's file, the box and the class in named columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detkit.data.annotations import Finding
from detkit.data.collecting import one_item
from detkit.data.csv_columns import NOTHING, Table, is_table
from detkit.data.image_finder import ImageFinder
from detkit.data.records import ImageRecord, ObjectRecord, Records, find_split_files
from detkit.data.records_module import RecordsDataModule
from detkit.data.text_files import read_start
from detkit.data.voc_files import SPLIT_OF
from detkit.errors import DataError

ONLY_CLASS = "object"  # where there is no column of classes


class CSV(RecordsDataModule):
    """A data set in a table (CSV): a row an object.

    The columns are found by their names, in any order: image (or filename, image_id, ...), class (or label, ...), and
    xmin, ymin, xmax, ymax, or x, y, w, h, or bbox as "[x, y, w, h]". Without a line of names the columns are image,
    xmin, ymin, xmax, ymax, class. A row without a box is an image without objects.

    Args:
        path: the file, or a folder with one (or with several that are called train, val and test).
        images: the folder of the images; by default they are searched below the table's folder.
        normalized: boxes are in shares of the image's sides, 0..1.
        shared: see RecordsDataModule.
    """

    def __init__(
        self, path: str = "data/table.csv", images: str | None = None, normalized: bool = False, **shared: Any
    ) -> None:
        super().__init__(path, **shared)
        self.images = images
        self.normalized = normalized
        tables = find_split_files(self.path, ".csv", lambda file: is_table(read_start(file)), "tables")
        self.use_records(read_tables(tables, images, normalized))


def read_tables(tables: Mapping[str, str], images: str | None, normalized: bool) -> dict[str, Records]:
    """Split -> its images and their objects; a column that names splits divides a single table.

    Raises:
        DataError: a table that cannot be read, a column that is missing, an image that is not there, or a box that is
            none; the message names file and line.
    """
    records: dict[str, Records] = {}
    finders: dict[str, ImageFinder] = {}
    for split, file in tables.items():
        root = images or os.path.dirname(file) or "."
        finder = finders.setdefault(root, ImageFinder(root, " as images"))
        rows_of: dict[str, dict[str, list[ObjectRecord]]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        no_box: list[int] = []
        table = Table.read(file)
        for number, row in table.rows:
            where = f"{file}: line {number}"
            with one_item():
                own = _split_of(table.text(row, "split"), where) if "split" in table.columns else split
                image = finder.find(table.text(row, "image"), where)
                sizes[image] = table.size(row)
                objects = rows_of.setdefault(own, {}).setdefault(image, [])
                name = table.text(row, "class") if "class" in table.columns else ONLY_CLASS
                if (box := table.box(row, where, normalized)) is not None:
                    if not name:
                        raise DataError(f"{where}: the object has no class")
                    objects.append(ObjectRecord(name, box, number))
                elif name.lower() not in NOTHING and "class" in table.columns:
                    no_box.append(number)
        findings = finder.findings(file)
        if "class" not in table.columns:
            text = f"there is no column of classes: every object is of the class {ONLY_CLASS!r}"
            findings.append(Finding("one_class", file, None, text))
        if no_box:
            text = f"{len(no_box):,} rows have a class, but no box, such as line {no_box[0]}: no object"
            findings.append(Finding("no_box", file, None, text, len(no_box)))
        for own, rows in rows_of.items():
            listed = [
                ImageRecord(name.replace(os.sep, "/"), name, file, objects, *sizes[name], normalized)
                for name, objects in rows.items()
            ]
            records[own] = Records(root, listed, findings)
            findings = []
    for root, finder in finders.items():
        first = next(iter(records.values()), None)
        if first is not None:
            first.findings.extend(finder.unnamed(root))
    return records


def _split_of(text: str, where: str) -> str:
    if (split := SPLIT_OF.get(text.lower())) is None:
        raise DataError(f"{where}: the split {text!r} is none of train, val and test")
    return split
