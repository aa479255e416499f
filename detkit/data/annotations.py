"""The annotations of a split as flat arrays, which workers share (a list is copied as it is read), and its findings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detkit.data.collecting import one_item
from detkit.data.input_files import LARGEST, short_repr
from detkit.errors import DataError
from detkit.settings import check_choice

if TYPE_CHECKING:
    from detkit.data.image_io import ImageShape


class Finding(NamedTuple):
    """Something a reader met that a user may want to know.

    Attributes:
        kind: a short name, such as "degenerate", "clipped" or "other_class".
        file: the file that holds it; of several, their folder.
        object: the object's number in the file (from 1; in COCO the annotation's id), or None.
        message: what was found and what was done.
        count: how many objects are meant.
    """

    kind: str
    file: str
    object: int | None
    message: str
    count: int = 1  # type: ignore[assignment]  # hides tuple's own method

    def __str__(self) -> str:
        number = "" if self.object is None else f", object {self.object}"
        return f"{self.file}{number}: {self.message}"


UNKNOWN_SIDE = 2**20
"""The side in pixels of an image that neither its annotation nor its file tells, where errors are collected."""
DROPPED = ("degenerate", "normalized", "inverted", "not_finite", "outside", "other_class")
"""Kinds of findings about boxes that were left out."""
PER_BOX = ("boxes", "labels", "difficult", "crowd", "area")
"""The fields of Annotations and of samples that have an entry for each box."""


class UnknownIdPolicy:
    """What is done with rows of images or classes that are not known: an error, or they are left out.

    Args:
        known_to: what lists the known ones: a file, or "class_names".
        images, classes: "error", or "drop" to leave such rows out.
        advice: how to mend it; the end of the error's message.

    Attributes:
        findings: one for each kind of rows that are left out.

    Raises:
        ConfigError: another word than "error" and "drop".
    """

    def __init__(self, known_to: str, images: str = "error", classes: str = "error", advice: str = "") -> None:
        for name, value in (("other_images", images), ("other_classes", classes)):
            check_choice(name, value, ("error", "drop"))
        self.known_to = known_to
        self.advice = advice
        self.findings: list[Finding] = []
        self._choices = {"images": images, "classes": classes}

    def check(
        self,
        numbers: np.ndarray,
        id_of: Callable[[int], Any],
        rows: str,
        owners: str,
        file: str,
        known: Iterable[Any],
        name_of: Callable[[int], str] | None = None,
    ) -> None:
        """Report the rows that are to be left out.

        Args:
            numbers: (N,) number of each row's image or class, negative for an unknown one.
            id_of: row -> its image's id or its class.
            rows: what the rows are, such as "detections".
            owners: "images" or "classes".
            file: what the rows were read from.
            known: the ids or classes there are.
            name_of: row -> what an error calls it, such as "a.xml, object 1"; None: the file.

        Raises:
            DataError: there are such rows, and they are not to be left out.
        """
        unknown = np.flatnonzero(numbers < 0).tolist()
        if not unknown:
            return
        counts = Counter(map(id_of, unknown))
        counted = f"{len(unknown):,} of {len(numbers):,} {rows} are of {len(counts):,} {owners} that {self.known_to}"
        if self._choices[owners] == "drop":
            kind = "other_image" if owners == "images" else "other_class"
            most = ", ".join(f"{short_repr(value)} {count:,}" for value, count in counts.most_common(5))
            text = f"{counted} does not have ({most}{', ...' if len(counts) > 5 else ''}): left out"
            self.findings.append(Finding(kind, file, None, text, len(unknown)))
            return
        others, there = list(counts), list(known)
        where = file if name_of is None else name_of(unknown[0])
        raise DataError(
            f"{where}: {counted} does not have: {_some(others)}; it has {_some(there)}"
            f"{_alike_but_for_type(others, there)}. {self.advice}"
        )


def class_policy(other_classes: str) -> UnknownIdPolicy:
    """What training does with objects of other classes than class_names; raises ConfigError for an unknown choice."""
    advice = "Correct the label, give class_names with it, or leave such objects out with other_classes: drop"
    return UnknownIdPolicy("class_names", classes=other_classes, advice=advice)


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(short_repr, values[:3])) + (", ..." if len(values) > 3 else "")


def _alike_but_for_type(others: Sequence[Any], there: Sequence[Any]) -> str:
    """A hint where the same ids are numbers in one file and strings in the other."""
    types = ["strings" if values and isinstance(values[0], str) else "numbers" for values in (others, there)]
    if types[0] != types[1] and {str(value) for value in others} & {str(value) for value in there}:
        return f" (ids are {types[0]} here and {types[1]} there: write them alike)"
    return ""


@dataclass(frozen=True)
class Annotations:
    """I images with N boxes in all; the boxes of image i are rows offsets[i]:offsets[i + 1].

    Attributes:
        root: folder that `files` are relative to.
        image_ids: (I,) str or int64.
        files: (I,) str.
        widths, heights: (I,) int32, as the annotation means the image.
        offsets: (I + 1,) int64.
        boxes: (N, 4) float32, x1 y1 x2 y2, half-open pixels, within the image.
        labels: (N,) int64, 1..K.
        difficult, crowd: (N,) bool.
        area: (N,) float32, the annotation's area (COCO) or the box's.
        findings: what the reader met.
        exif: whether the EXIF orientation turns the images, see `detkit.data.image_io.read_image`.
        annotated: False for images that nobody has annotated, which are for prediction only.
    """

    root: str
    image_ids: np.ndarray
    files: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    findings: list[Finding] = field(default_factory=list)
    exif: str = "auto"
    annotated: bool = True

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> str:
        """Where the image lies."""
        return os.path.join(self.root, str(self.files[index]))

    def image_id(self, index: int) -> str | int:
        """The data set's own id of the image, as a plain str or int."""
        return self.image_ids[index].item()

    def fields(self, index: int) -> dict[str, np.ndarray]:
        """Copies of one image's per-box arrays: boxes (n, 4), labels, difficult, crowd, area (n,)."""
        rows = slice(*self.offsets[index : index + 2])
        return {name: getattr(self, name)[rows].copy() for name in PER_BOX}

    def image(self, index: int) -> np.ndarray:
        """The image's pixels as the annotation means them, uint8 (H, W, 3) RGB; raises as `read_image`."""
        from detkit.data.image_io import read_image  # and Pillow, which files of annotations do not need

        return read_image(self.path(index), (int(self.widths[index]), int(self.heights[index])), self.exif)

    def subset(self, indices: np.ndarray, findings: list[Finding]) -> Annotations:
        """Some of the images, in this order, with findings of their own."""
        counts = self.counts[indices]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        rows = np.repeat(self.offsets[indices] - offsets[:-1], counts) + np.arange(offsets[-1])
        of_images = {name: getattr(self, name)[indices] for name in ("image_ids", "files", "widths", "heights")}
        of_boxes = {name: getattr(self, name)[rows] for name in PER_BOX}
        return replace(self, **of_images, **of_boxes, offsets=offsets, findings=findings)

    @property
    def counts(self) -> np.ndarray:
        """Boxes in each image, (I,) int64."""
        return np.diff(self.offsets)

    @property
    def wide(self) -> np.ndarray:
        """Which images are wider than tall, (I,) bool."""
        return self.widths > self.heights


def _shape_or_error(path: str) -> ImageShape | DataError:
    from detkit.data.image_io import image_shape

    try:
        return image_shape(path)
    except DataError as error:
        return error


class AnnotationsBuilder:
    """Collects images and their boxes while a data set is read; `build` checks them all at once.

    Args:
        root: folder that image files are relative to.
        min_side: boxes with a side of this many pixels or less are degenerate and left out.
        exif: whether the EXIF orientation turns the images, see `detkit.data.image_io.read_image`.
        measure: read the size of every image from its file, and say where an annotation has another; without it only
            where an annotation has none.
        has_sizes: annotations of this format have sizes, so that one that is missing is told.
    """

    def __init__(
        self, root: str, min_side: float = 1.0, exif: str = "auto", measure: bool = False, has_sizes: bool = True
    ) -> None:
        self.root = root
        self.min_side = min_side
        self.exif = exif
        self.measure = measure
        self.has_sizes = has_sizes
        self.findings: list[Finding] = []
        self._images: list[tuple[Any, str, int, int, str]] = []
        self._rows: list[tuple[int, int | None, int, bool, bool, float]] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def image(self, image_id: str | int, file: str, width: int, height: int, source: str | None = None) -> int:
        """Add an image and return its number, for `box`.

        Args:
            image_id: unique in the split; all are str or all are int.
            file: relative to the root.
            width, height: in pixels, as the annotation means the image; 0 where it does not say.
            source: the annotation file that findings name; None names the image file.

        Raises:
            DataError: a side that is no pixel, or too many.
        """
        if not (0 <= width <= LARGEST and 0 <= height <= LARGEST):
            size = f"{short_repr(width)} x {short_repr(height)}"
            raise DataError(f"{source or file}: image {image_id!r}: its size is {size} pixels; correct it")
        self._images.append((image_id, file, width, height, file if source is None else source))
        return len(self._images) - 1

    def measure_images(self) -> None:
        """Read the sizes that are asked for (see `measure`) from the images' files; `build` does it, too.

        An image that cannot be read keeps the size that its annotation gives, and is a finding.

        Raises:
            DataError: an image without such a size that is missing or cannot be read.
        """
        wanted = [i for i, (_, _, w, h, _) in enumerate(self._images) if self.measure or not (w and h)]
        self.measure = False
        paths = [os.path.join(self.root, self._images[i][1]) for i in wanted]
        sources = Counter(source for *_, source in self._images)
        with ThreadPoolExecutor(2) as pool:
            shapes = list(pool.map(_shape_or_error, paths))
        for i, path, shape in zip(wanted, paths, shapes, strict=True):
            image_id, file, *stated, source = self._images[i]
            name = f"image {file}: " if sources[source] > 1 else ""
            if isinstance(shape, DataError):
                self.findings.append(Finding("unreadable", path, None, str(shape)))
                if not all(stated):
                    with one_item():
                        raise shape
                    self._images[i] = (image_id, file, UNKNOWN_SIDE, UNKNOWN_SIDE, source)
                continue
            width, height = shape.size_for((stated[0], stated[1]), self.exif)
            self._images[i] = (image_id, file, width, height, source)
            if not all(stated) and not self.has_sizes:
                pass
            elif not all(stated):
                text = f"no size is given; {width} x {height} read from the image"
                self.findings.append(Finding("no_size", source, None, name + text))
            elif stated != [width, height]:
                text = f"says {stated[0]} x {stated[1]}, the image is {width} x {height}; the image's size counts"
                self.findings.append(Finding("other_size", source, None, name + text))
            if self.exif == "auto" and shape.is_unclear((stated[0], stated[1])):
                text = "the image has an EXIF orientation, and its size does not tell whether the boxes are meant "
                text += "before or after turning it; it is turned (exif: apply or ignore decides for all)"
                self.findings.append(Finding("exif", file, None, text))

    def size(self, image: int) -> tuple[int, int]:
        """(width, height) of an image by its number, after `measure_images`."""
        return self._images[image][2:4]

    def box(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        number: int | None = None,
        difficult: bool = False,
        crowd: bool = False,
        area: float = float("nan"),
    ) -> None:
        """Add a box; the images may come in any order.

        Args:
            image: the image's number.
            box: x1, y1, x2, y2 in pixels, half-open: a full image is (0, 0, width, height).
            label: 1..K.
            number: what findings call the object.
            difficult, crowd: see Annotations.
            area: square pixels; NaN takes the box's.
        """
        self._boxes.append(box)
        self._rows.append((image, number, label, difficult, crowd, area))

    def build(self, annotated: bool = True) -> Annotations:
        """Check, clip and drop boxes; each such step becomes a finding.

        Args:
            annotated: see Annotations.

        Raises:
            DataError: there is no image, or the boxes are in shares of the image's sides instead of pixels.
        """
        if not self._images:
            raise DataError(f"{self.root}: the data set has no images")
        self.measure_images()
        ids, files, widths, heights, _ = zip(*self._images, strict=True)
        size = np.array([widths, heights], np.int64).T
        raw = np.array(self._boxes, np.float64).reshape(-1, 4)
        image = np.array([row[0] for row in self._rows], np.int64)
        if len(raw) and 0 < np.nan_to_num(raw, nan=np.inf).max() <= 1:
            source = self._images[image[0]][-1]
            with one_item():
                raise DataError(
                    f"{source}: the coordinates look normalised (the largest of all boxes is {raw.max():g}); wanted "
                    "are pixels: multiply them by the width and height of the images"
                )
        boxes = np.clip(raw, 0.0, np.tile(size[image], 2))
        keep = self._check(raw, boxes)
        order = np.argsort(image, kind="stable")
        order = order[keep[order]]
        boxes = boxes[order].astype(np.float32)
        area = np.array([row[5] for row in self._rows], np.float32)[order]
        counts = np.bincount(image[order], minlength=len(ids))
        return Annotations(
            root=self.root,
            image_ids=np.array(ids),
            files=np.array(files),
            widths=size[:, 0].astype(np.int32),
            heights=size[:, 1].astype(np.int32),
            offsets=np.concatenate(([0], np.cumsum(counts))),
            boxes=boxes,
            labels=np.array([row[2] for row in self._rows], np.int64)[order],
            difficult=np.array([row[3] for row in self._rows], bool)[order],
            crowd=np.array([row[4] for row in self._rows], bool)[order],
            area=np.where(np.isnan(area), (boxes[:, 2:] - boxes[:, :2]).prod(1), area),
            findings=self.findings,
            exif=self.exif,
            annotated=annotated,
        )

    def _check(self, raw: np.ndarray, clipped: np.ndarray) -> np.ndarray:
        """Which rows stay, (N,) bool; appends to the findings."""
        finite = (np.abs(raw) <= LARGEST).all(1)
        sides = raw[:, 2:] - raw[:, :2]
        inverted = finite & (sides < 0).any(1)
        # Whole numbers from 0 to 1 are a box of one pixel; in an image whose others are in pixels, too.
        normalized = finite & (np.abs(raw) <= 1).all(1) & (np.rint(raw) != raw).any(1)
        inverted &= ~normalized
        degenerate = finite & ~inverted & ~normalized & (sides <= self.min_side).any(1)
        good = finite & ~inverted & ~degenerate & ~normalized
        outside = good & ((clipped[:, 2:] - clipped[:, :2]) <= self.min_side).any(1)
        # COCO rounds to hundredths of a pixel: less than that is no finding.
        moved = good & ~outside & (np.abs(raw - clipped) > 0.02).any(1)
        kinds = (
            ("not_finite", ~finite, f"is not finite, or beyond {LARGEST:g}; box left out"),
            ("normalized", normalized, "looks normalised, pixels are wanted; box left out"),
            ("inverted", inverted, "ends before it begins; box left out"),
            ("degenerate", degenerate, f"has a side of at most {self.min_side:g} px; box left out"),
            ("outside", outside, "lies outside the image; box left out"),
            ("clipped", moved, "reaches out of the image; box clipped"),
        )
        for kind, rows, text in kinds:
            for row in np.flatnonzero(rows):
                image, number, *_ = self._rows[row]
                *_, width, height, source = self._images[image]
                corners = ", ".join(f"{value:g}" for value in raw[row])
                bounds = f" ({width:g} x {height:g})" if kind in ("outside", "clipped") else ""
                self.findings.append(Finding(kind, source, number, f"[{corners}]{bounds} {text}"))
        return good & ~outside
