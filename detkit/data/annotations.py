"""The annotations of a split as flat arrays, and what was found wrong in them.

Arrays instead of a list of dicts: a list is copied into every worker piece by piece,
since reading an element writes its reference count.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from detkit.errors import ConfigError, DataError


class Finding(NamedTuple):
    """Something a reader met that a user may want to know.

    Attributes:
        kind: "degenerate", "inverted", "not_finite", "clipped", "outside", "no_difficult",
            "bad_difficult", "no_size", "other_class", ...
        file: the file that holds it; of several, their folder.
        object: the object's number in the file (from 1; in COCO the annotation's id), or None.
        message: what was found and what was done.
        count: how many objects it speaks of.
    """

    kind: str
    file: str
    object: int | None
    message: str
    count: int = 1


DROPPED = ("degenerate", "inverted", "not_finite", "outside", "other_class")
"""Kinds of findings that say a box was left out."""


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
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        names = ("boxes", "labels", "difficult", "crowd", "area")
        return {name: getattr(self, name)[rows].copy() for name in names}

    @property
    def counts(self) -> np.ndarray:
        """Boxes in each image, (I,) int64."""
        return np.diff(self.offsets)

    @property
    def wide(self) -> np.ndarray:
        """Which images are wider than tall, (I,) bool."""
        return self.widths > self.heights


class AnnotationsBuilder:
    """Collects images and raw boxes from a reader; `build` checks them all at once.

    Args:
        root: folder that image files are relative to.
        min_side: boxes with a side of this many pixels or less are degenerate and left out.
    """

    def __init__(self, root: str, min_side: float) -> None:
        self.root, self.min_side = root, min_side
        self.findings: list[Finding] = []
        self._others: Counter[str] = Counter()
        self._images: list[tuple[Any, str, int, int, str]] = []
        self._rows: list[tuple[int, int | None, int, bool, bool, float]] = []
        self._boxes: list[tuple[float, float, float, float]] = []

    def image(self, image_id: str | int, file: str, width: int, height: int, source: str) -> int:
        """Begin an image; `source` is the file that findings name. Returns the image's number."""
        self._images.append((image_id, file, width, height, source))
        return len(self._images) - 1

    def box(
        self,
        image: int,
        box: tuple[float, float, float, float],
        label: int,
        number: int | None,
        difficult: bool = False,
        crowd: bool = False,
        area: float = float("nan"),
    ) -> None:
        """Add a half-open box (any order, any image); an `area` of NaN stands for the box's own."""
        self._boxes.append(box)
        self._rows.append((image, number, label, difficult, crowd, area))

    def other_class(self, name: str) -> None:
        """Leave out an object of a class that is not to be learnt; `build` sums them up in one finding."""
        self._others[name] += 1

    def build(self) -> Annotations:
        """Check, clip and drop boxes; each such step becomes a finding.

        Raises:
            DataError: no images at all.
        """
        if not self._images:
            raise DataError(f"{self.root}: the data set has no images")
        ids, files, widths, heights, _ = zip(*self._images, strict=True)
        size = np.array([widths, heights], np.int64).T.reshape(-1, 2)
        raw = np.array(self._boxes, np.float64).reshape(-1, 4)
        image = np.array([row[0] for row in self._rows], np.int64)
        limits = np.tile(size[image], 2).astype(np.float64)
        boxes = np.clip(raw, 0.0, limits)
        keep = self._check(raw, boxes, limits, image)
        if self._others:
            counts = ", ".join(f"{name} {count}" for name, count in self._others.most_common())
            text = f"objects of other classes left out: {counts}"
            self.findings.append(Finding("other_class", self.root, None, text, self._others.total()))
        order = np.argsort(image, kind="stable")
        order = order[keep[order]]
        boxes = boxes[order].astype(np.float32)
        area = np.array([row[5] for row in self._rows], np.float32)[order]
        sides = boxes[:, 2:] - boxes[:, :2]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(np.bincount(image[order], minlength=len(ids)), out=offsets[1:])
        return Annotations(
            root=self.root,
            image_ids=np.array(ids),
            files=np.array(files),
            widths=size[:, 0].astype(np.int32),
            heights=size[:, 1].astype(np.int32),
            offsets=offsets,
            boxes=boxes,
            labels=np.array([row[2] for row in self._rows], np.int64)[order],
            difficult=np.array([row[3] for row in self._rows], bool)[order],
            crowd=np.array([row[4] for row in self._rows], bool)[order],
            area=np.where(np.isnan(area), sides[:, 0] * sides[:, 1], area).astype(np.float32),
            findings=self.findings,
        )

    def _check(self, raw: np.ndarray, clipped: np.ndarray, limits: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Which rows stay, (N,) bool; appends to the findings."""
        finite = np.isfinite(raw).all(1)
        sides = raw[:, 2:] - raw[:, :2]
        inverted = finite & (sides < 0).any(1)
        degenerate = finite & ~inverted & (sides <= self.min_side).any(1)
        good = finite & ~inverted & ~degenerate
        outside = good & ((clipped[:, 2:] - clipped[:, :2]) <= self.min_side).any(1)
        # COCO rounds to hundredths of a pixel: less than that is no finding.
        moved = good & ~outside & (np.abs(raw - clipped) > 0.02).any(1)
        kinds = (
            ("not_finite", ~finite, "is not finite; box left out"),
            ("inverted", inverted, "ends before it begins; box left out"),
            ("degenerate", degenerate, f"has a side of at most {self.min_side:g} px; box left out"),
            ("outside", outside, "lies outside the image; box left out"),
            ("clipped", moved, "reaches out of the image; box clipped"),
        )
        for kind, rows, text in kinds:
            for row in np.flatnonzero(rows):
                source = self._images[image[row]][4]
                place = ", ".join(f"{value:g}" for value in raw[row])
                bounds = f" ({limits[row, 0]:g} x {limits[row, 1]:g})" if kind in ("outside", "clipped") else ""
                self.findings.append(Finding(kind, source, self._rows[row][1], f"[{place}]{bounds} {text}"))
        return good & ~outside


def check_other_classes(value: str) -> str:
    """What is done with objects of other classes than those given: "error" or "drop".

    Raises:
        ConfigError: anything else.
    """
    if value not in ("error", "drop"):
        raise ConfigError(f"other_classes must be 'error' or 'drop', got {value!r}")
    return value


def check_class_names(names: Sequence[str]) -> list[str]:
    """The class names as a list of plain str.

    Raises:
        DataError: no class, an empty name or a name given twice.
    """
    result = [str(name) for name in names]
    doubled = sorted({name for name in result if result.count(name) > 1})
    if not result or doubled or not all(name.strip() for name in result):
        reason = f"given twice: {', '.join(doubled)}" if doubled else "none given, or one is empty"
        raise DataError(f"class names must be different and not empty ({reason})")
    return result
