"""Data sets of YOLO projects: a text file an image, with a class number and four shares of the image's sides a line."""

from __future__ import annotations

import os
from typing import Any, Literal

from detkit.data.annotations import Annotations, Finding, class_policy
from detkit.data.collecting import one_item
from detkit.data.datamodule import DetectionDataModule
from detkit.data.records import Box, ImageRecord, ObjectRecord, Records, to_annotations
from detkit.data.text_files import read_text
from detkit.data.yolo_files import YOLOFiles, find_files
from detkit.errors import DataError


class YOLO(DetectionDataModule):
    """A data set in YOLO's layout: images, and for each a text file with a line an object.

    A line is `CLASS X Y WIDTH HEIGHT`, the centre and the sides of the box in shares of the image's sides, or
    `CLASS X Y X Y X Y ...`, an outline, of which the box is taken. CLASS counts from 0. An image without a file has no
    objects. Keypoints (`kpt_shape` in data.yaml) are not used.

    Args:
        path: data.yaml, or the folder of it. Without data.yaml (or Darknet's obj.data) the names are read from
            classes.txt or obj.names, and the sets are the folders train, val (or valid) and test.
        other_classes: what to do with an object of another class than class_names: "error", or "drop" to leave it
            out (it is then background); the summary says how many were.
        shared: see DetectionDataModule. Without class_names the classes are the data set's own, in its order.
    """

    def __init__(
        self, path: str = "data/yolo", other_classes: Literal["error", "drop"] = "error", **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.path = str(path)
        self.other_classes = other_classes
        class_policy(other_classes)  # raises where it is neither word
        self.files = find_files(self.path)
        self.sources = {split: self.path if split in self.files.images else None for split in ("train", "val", "test")}
        if "all" in self.files.images:
            self.sources = {"all": self.path}
        if not self.class_names:
            self._set_classes(self.files.class_names)

    def read(self, split: str) -> Annotations | None:
        """Read the label files of a split."""
        if split not in self.files.images:
            return None
        records = read_yolo(self.files, split)
        return to_annotations(records, self.class_names, class_policy(self.other_classes), self.exif)


def read_yolo(files: YOLOFiles, split: str) -> Records:
    """The objects of a split's images.

    Raises:
        DataError: a line that is none of YOLO's; the message names file and line.
    """
    reader = _LabelReader(files)
    images = []
    missing = []
    for file in files.images[split]:
        source = files.labels[file]
        name = os.path.relpath(file, files.root)
        if source is None:
            missing.append(name)
        objects: list[ObjectRecord] = []
        with one_item():
            objects = [] if source is None else reader.objects(source)
        images.append(ImageRecord(name.replace(os.sep, "/"), name, source or file, objects, normalized=True))
    findings = reader.findings
    if missing:
        text = f"{len(missing):,} images have no label file, such as {missing[0]}: taken as images without objects"
        findings.append(Finding("no_label_file", files.root, None, text, len(missing)))
    if reader.outlines:
        text = f"{reader.outlines:,} objects are outlines: their boxes are taken"
        findings.append(Finding("from_outline", files.root, None, text, reader.outlines))
    if split in ("train", "all"):
        findings += files.findings
    return Records(files.root, images, findings)


class _LabelReader:
    """Reads label files, and counts what it met."""

    def __init__(self, files: YOLOFiles) -> None:
        self.files = files
        self.findings: list[Finding] = []
        self.outlines = 0

    def objects(self, source: str) -> list[ObjectRecord]:
        """The objects of a label file."""
        found = []
        for number, line in enumerate(read_text(source).splitlines(), 1):
            with one_item():
                found += [self._object(line, number, source)] if line.strip() else []
        return found

    def _object(self, line: str, number: int, source: str) -> ObjectRecord:
        where = f"{source}: line {number}"
        names = self.files.class_names
        # A comma separates where there is no space, or one after each comma; else it may be a decimal point.
        separates = line.count(",") in (line.count(", "), line.count(",") * (" " not in line.strip()))
        fields = (line.replace(",", " ") if separates else line).split()
        try:
            label = float(names.index(fields[0])) if fields[0] in names else float(fields[0])
            shares = [float(field) for field in fields[1:]]
        except ValueError:
            raise DataError(f"{where}: {line.strip()[:60]!r} is not a class number and shares of the sides") from None
        if self.files.keypoints:
            shares = shares[:4]
        if len(shares) == 5:
            self.findings.append(Finding("confidence", source, number, "a sixth number, a confidence, is not used"))
            shares = shares[:4]
        if len(shares) < 4 or len(shares) % 2:
            raise DataError(f"{where}: has {len(fields)} numbers; a box has 5, an outline 7, 9, 11, ...")
        if not label.is_integer() or not 0 <= label < len(names):
            raise DataError(f"{where}: class {fields[0]}, but there are the classes 0 to {len(names) - 1}")
        if not all(abs(share) <= 2 for share in shares):  # NaN is not, either
            largest = next(share for share in shares if not abs(share) <= 2)
            raise DataError(f"{where}: {largest:g} is no share of a side, 0 to 1; boxes in pixels are not YOLO's")
        self.outlines += len(shares) > 4
        return ObjectRecord(names[int(label)], _box(shares), number)


def _box(shares: list[float]) -> Box:
    if len(shares) == 4:
        x, y, width, height = shares
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = shares[::2], shares[1::2]
    return min(xs), min(ys), max(xs), max(ys)
