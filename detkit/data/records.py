"""Images and their objects as a file names them: what the readers of YOLO, CSV and labelling tools give.

Class names and sizes are still those of the files; `to_annotations` checks them and makes `Annotations`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detkit.data.annotations import Annotations, AnnotationsBuilder, Finding, UnknownIdPolicy
from detkit.data.collecting import one_item
from detkit.data.input_files import walk
from detkit.data.voc_files import SPLIT_NAMES
from detkit.errors import DataError

Box = tuple[float, float, float, float]


class ObjectRecord(NamedTuple):
    """An object.

    Attributes:
        class_name: of the class.
        box: x1, y1, x2, y2, half-open, in pixels or, see `ImageRecord.normalized`, in shares of the image's sides.
        number: what findings call it, such as the line of the file.
        difficult: it is not counted as a miss, and is not trained on by default.
    """

    class_name: str
    box: Box
    number: int | None = None
    difficult: bool = False


class ImageRecord(NamedTuple):
    """An image.

    Attributes:
        image_id: unique in the split.
        file: of the image, relative to the root of its `Records`.
        source: the annotation file, for messages.
        objects: what is annotated.
        width, height: pixels, as the annotation means the image; 0 where it does not say.
        normalized: boxes are in shares of the image's sides, 0..1.
    """

    image_id: str
    file: str
    source: str
    objects: Sequence[ObjectRecord]
    width: int = 0
    height: int = 0
    normalized: bool = False


class Records(NamedTuple):
    """The images of a split, relative to a folder, and what their reader found."""

    root: str
    images: list[ImageRecord]
    findings: list[Finding]

    def class_names(self) -> set[str]:
        """The class names that occur."""
        return {item.class_name for image in self.images for item in image.objects}


def files_of_splits(files: Sequence[str], root: str) -> dict[str, str] | None:
    """Split -> the one file whose name or folder says so; {"all": file} for a single file; None where it is unclear."""
    if len(files) == 1:
        return {"all": files[0]}
    found: dict[str, str] = {}
    for file in files:
        words = set(re.findall(r"[a-z]+", os.path.relpath(file, root).lower()))
        splits = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
        if len(splits) != 1 or splits[0] in found:
            return None
        found[splits[0]] = file
    return found


def find_split_files(path: str, suffix: str, accepts: Callable[[str], bool], what: str) -> dict[str, str]:
    """Split -> file of a data set in one file, or in one for each split; "all" for a single one.

    Args:
        path: a file, which is taken as it is, or a folder.
        suffix: of the files, such as ".csv".
        accepts: whether a file with this suffix is one.
        what: they are called, in the plural, for messages.

    Raises:
        DataError: there is none, or several that are not called as splits are.
    """
    if os.path.isfile(path):
        return {"all": path}
    named = sorted(file for file in walk(path, hidden=False) if file.lower().endswith(suffix))
    # A single file is taken in any case: the message on what is in it says more.
    files = named if len(named) == 1 else list(filter(accepts, named))
    if not files:
        raise DataError(f"{path}: no {what} (*{suffix}) there")
    found = files_of_splits(files, path)
    if found is None:
        raise DataError(f"{path}: {', '.join(files)} are {what}; name one of them as path")
    return found


def counted(counts: Mapping[str, int], texts: Mapping[str, str], source: str) -> list[Finding]:
    """A finding for each kind that was counted; its text says what was done."""
    return [
        Finding(kind, source, None, f"{counts[kind]:,} {text}", counts[kind])
        for kind, text in texts.items()
        if counts.get(kind)
    ]


def to_annotations(
    records: Records, class_names: Sequence[str], policy: UnknownIdPolicy, exif: str = "auto"
) -> Annotations:
    """Check the records, and turn shares into pixels; the size of an image is that of its file.

    Args:
        records: a split.
        class_names: the classes, without background, in the order of the labels 1..K.
        policy: of objects of other classes.
        exif: whether the EXIF orientation turns the images, see `detkit.data.image_io.read_image`.

    Raises:
        DataError: an object of another class, an image that cannot be read, or no image at all.
    """
    has_sizes = all(image.width for image in records.images)
    builder = AnnotationsBuilder(records.root, min_side=1.0, exif=exif, measure=True, has_sizes=has_sizes)
    rows = [(image, item) for image in records.images for item in image.objects]
    label_of = {name: label for label, name in enumerate(class_names, 1)}
    labels = np.array([label_of.get(item.class_name, -1) for _, item in rows], np.int64)
    with one_item():
        policy.check(
            labels,
            id_of=lambda row: rows[row][1].class_name,
            rows="objects",
            owners="classes",
            file=records.root,
            known=class_names,
            name_of=lambda row: f"{rows[row][0].source}: object {rows[row][1].number}",
        )
    numbers = [
        builder.image(image.image_id, image.file, image.width, image.height, image.source) for image in records.images
    ]
    builder.measure_images()
    for number, image in zip(numbers, records.images, strict=True):
        scale = builder.size(number) * 2 if image.normalized else (1, 1, 1, 1)
        for item in image.objects:
            if (label := label_of.get(item.class_name)) is not None:
                x1, y1, x2, y2 = (value * side for value, side in zip(item.box, scale, strict=True))
                builder.box(number, (x1, y1, x2, y2), label, item.number, difficult=item.difficult)
    builder.findings = [*records.findings, *policy.findings, *builder.findings]
    return builder.build()
