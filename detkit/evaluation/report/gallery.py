"""The gallery: the images with the most errors and the best ones, and what is drawn over them.

Images are assessed as a user of the detector sees them: detections below the score threshold are left out. The cost of
an image is the number of its objects that are not found plus the scores of its wrong detections, each score limited to
0..1: a missed object costs as much as a wrong detection of score 1, and a wrong detection just above the threshold
costs little. The worst images are those with the highest cost.

The best images have objects, all of them found, and no wrong detection; of those, the ones with the largest margin
between the lowest score of a right detection and the highest score of a wrong detection below the threshold. Equal
images are taken in the order of their ids.

The photo is in the page once, as a JPEG; ground truth and detections are drawn over it as SVG, so that lines and labels
are sharp at any size and need few bytes.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.data.image_io import read_image
from detkit.drawing import Rectangle, place_label
from detkit.errors import DataError
from detkit.evaluation.errors import ERROR_KINDS
from detkit.evaluation.report.charts import plain_label

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet

Images = Mapping[Any, str | PathLike[str]] | Callable[[Any], str | PathLike[str] | None]

MAX_IMAGES = 8  # of the worst, and of the best
LONGEST_SIDE = 480  # of a picture, in pixels
QUALITY = 70  # of its JPEG
MAX_BOXES, MAX_LABELS = 80, 24  # of a picture
RIGHT = ("hit", "found", "ignored")  # kinds of marks that are no error
FEW_BOXES = 8  # up to so many are all labelled, otherwise only errors
MAX_COVERED = 0.3  # share of a label that other labels may cover; otherwise it is left out


@dataclass(frozen=True, eq=False, slots=True)
class Assessment:
    """The images of a set at the score threshold."""

    evaluation_set: EvaluationSet
    analysis: Analysis
    shown: np.ndarray  # (D,) bool, detections that count and reach the threshold
    wrong: np.ndarray  # (D,) bool, those of them that are errors
    to_find: np.ndarray  # (G,) bool, objects that count
    found: np.ndarray  # (G,) bool, objects that a shown detection found
    found_score: np.ndarray  # (G,) float64, score of the detection that found the object, shown or not; NaN for none
    cost: np.ndarray  # (I,) float64, see above
    margin: np.ndarray  # (I,) float64, see above; NaN for an image that has an error or no objects


@dataclass(frozen=True, slots=True)
class Mark:
    """A box to draw over a picture, in the picture's pixels."""

    kind: str  # an error, "hit", "found", "missed", "below" (found with too low a score) or "ignored"
    text: str  # of its label
    x: float
    y: float
    width: float
    height: float
    label: Rectangle | None  # x, y, width and height of its label; None where there is no room for it


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the gallery."""

    number: int  # of the image in the set; unique in the page
    name: str  # its id, and the file's name where it says more
    summary: str  # its objects found and its errors, in words
    photo: str | None  # the JPEG as a data URI; None where the file cannot be read
    problem: str  # why it cannot be read; "" where it can
    width: int  # of the picture, in pixels
    height: int
    font_size: int  # of the labels, in these pixels
    truth: list[Mark]  # the boxes to draw, in this order
    detections: list[Mark]  # likewise
    left_out: int  # how many boxes are not drawn because there are too many


def assess_images(evaluation_set: EvaluationSet, analysis: Analysis) -> Assessment:
    """The assessment of all images of a set."""
    s, assignment = evaluation_set, analysis.assignment
    threshold = -math.inf if math.isnan(analysis.score_threshold) else analysis.score_threshold
    shown = assignment.counted & (s.scores >= threshold)
    errors = analysis.errors.kind >= 0
    hits = assignment.hits
    to_find = s.to_find(len(analysis.class_names))
    found_score = np.full(len(s.labels), np.nan)
    found_score[assignment.object[hits]] = s.scores[hits]
    found = np.zeros(len(s.labels), bool)
    found[assignment.object[hits & shown]] = True

    wrong, images = shown & errors, s.detection_images
    weights = np.clip(s.scores[wrong], 0.0, 1.0)
    cost = np.bincount(images[wrong], weights, minlength=len(s))
    cost += np.bincount(s.object_images[to_find & ~found], minlength=len(s))
    lowest_hit, highest_error = np.full(len(s), np.inf), np.zeros(len(s))
    np.minimum.at(lowest_hit, images[hits & shown], s.scores[hits & shown])
    np.maximum.at(highest_error, images[errors], s.scores[errors])
    best = (np.bincount(s.object_images[to_find], minlength=len(s)) > 0) & (cost == 0)
    # A wrong detection with a score of 0 costs nothing and is still an error.
    best &= np.bincount(images[wrong], minlength=len(s)) == 0
    margin = np.where(best, lowest_hit - highest_error, np.nan)
    return Assessment(s, analysis, shown, wrong, to_find, found, found_score, cost, margin)


def worst_images(assessment: Assessment, most: int = MAX_IMAGES) -> list[int]:
    """Numbers of the images with the highest cost, the worst first; none without cost."""
    order = np.argsort(-assessment.cost, kind="stable")[:most]
    return [int(image) for image in order if assessment.cost[image] > 0]


def best_images(assessment: Assessment, most: int = MAX_IMAGES) -> list[int]:
    """Numbers of the best images, the best first."""
    order = np.argsort(-assessment.margin, kind="stable")[:most]  # NaN goes last
    return [int(image) for image in order if not math.isnan(assessment.margin[image])]


def make_picture(assessment: Assessment, image: int, images: Images, font_size: int = 15) -> Picture:
    """The picture of image number `image` of the set."""
    s = assessment.evaluation_set
    image_id = s.image_ids[image]
    objects = np.arange(*s.object_offsets[image : image + 2])
    detections = np.arange(*s.detection_offsets[image : image + 2])
    detections = detections[assessment.shown[detections]]
    path = image_path(images, image_id)
    photo, size, problem = _read(path)
    if size is None:
        size = _extent(np.concatenate((s.boxes[objects], s.detected_boxes[detections])))
    scale = LONGEST_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)

    truth = [(*_describe_object(assessment, row), s.boxes[row]) for row in objects.tolist()]
    detected = [(*_describe_detection(assessment, row), s.detected_boxes[row]) for row in detections.tolist()]
    name = "image without an id" if image_id is None else str(image_id)
    if path is not None and Path(path).stem != name and Path(path).name != name:
        name += f" ({Path(path).name})"
    return Picture(
        number=image,
        name=plain_label(name, 60),
        summary=_summary(assessment, objects, detections),
        photo=photo,
        problem=problem,
        width=width,
        height=height,
        font_size=font_size,
        truth=_marks(truth, scale, (width, height), font_size),
        detections=_marks(detected, scale, (width, height), font_size),
        left_out=max(0, len(truth) - MAX_BOXES) + max(0, len(detected) - MAX_BOXES),
    )


def _summary(assessment: Assessment, objects: np.ndarray, detections: np.ndarray) -> str:
    """The objects found and the errors of an image, in words, from their rows."""
    to_find, found = int(assessment.to_find[objects].sum()), int(assessment.found[objects].sum())
    words = [f"{found} of {to_find} object{'s' if to_find != 1 else ''} found" if to_find else "no objects to find"]
    wrong = detections[assessment.wrong[detections]]
    counts = np.bincount(assessment.analysis.errors.kind[wrong], minlength=len(ERROR_KINDS))
    words += [f"{count} {name}" for name, count in zip(ERROR_KINDS, counts.tolist(), strict=True) if count]
    return ", ".join(words)


def image_path(images: Images, image_id: Any) -> str | PathLike[str] | None:
    """The path of an image's file; None where it is not known."""
    try:
        return images(image_id) if callable(images) else images.get(image_id)
    except (LookupError, DataError, OSError):
        return None


def _read(path: str | PathLike[str] | None) -> tuple[str | None, tuple[int, int] | None, str]:
    """The photo as a data URI, the (width, height) of the image in its file, and why it cannot be read."""
    from PIL import Image

    if path is None:
        return None, None, "The path of the image file is not known."
    try:
        image = Image.fromarray(read_image(path))
    except (DataError, OSError, ValueError) as error:
        missing = isinstance(error, DataError) and not os.path.exists(path)
        return None, None, f"The image file {'is missing' if missing else 'cannot be read'}."
    size = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return jpeg_uri(image), size, ""


def jpeg_uri(image: Any) -> str:
    """A PIL image as the data URI of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _extent(boxes: np.ndarray) -> tuple[int, int]:
    """A (width, height) that contains all boxes (N, 4), x y width height."""
    if not len(boxes):
        return 4, 3
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return max(1, round(float(right) * 1.03)), max(1, round(float(bottom) * 1.03))


def _describe_object(assessment: Assessment, row: int) -> tuple[str, str]:
    """Kind and text of an object."""
    s, analysis = assessment.evaluation_set, assessment.analysis
    name = _name(analysis, s.labels[row])
    if not assessment.to_find[row]:
        why = "crowd" if s.crowd[row] else "difficult" if s.difficult[row] else "class not evaluated"
        return "ignored", f"{name} · {why}"
    if assessment.found[row]:
        return "found", name
    if not np.isnan(assessment.found_score[row]):
        return "below", f"{name} · score {assessment.found_score[row]:.2f} too low"
    return "missed", f"{name} · {'missed' if analysis.errors.missed[row] else 'not found'}"


def _describe_detection(assessment: Assessment, row: int) -> tuple[str, str]:
    """Kind and text of a detection."""
    s, analysis = assessment.evaluation_set, assessment.analysis
    text, kind = f"{_name(analysis, s.detected_labels[row])} {s.scores[row]:.2f}", analysis.errors.kind[row]
    if kind >= 0:
        return ERROR_KINDS[kind], f"{text} · {ERROR_KINDS[kind]}"
    return ("ignored", f"{text} · ignored") if analysis.assignment.ignored[row] else ("hit", text)


def _name(analysis: Analysis, label: int) -> str:
    names = analysis.class_names
    return plain_label(names[label - 1], 20) if 1 <= label <= len(names) else f"class {label}"


def _marks(boxes: list[tuple[str, str, np.ndarray]], scale: float, size: tuple[int, int], font_size: int) -> list[Mark]:
    """The boxes to draw: errors on top, and labelled first."""
    boxes = sorted(boxes, key=lambda box: box[0] in RIGHT)[:MAX_BOXES]  # the sort is stable
    frames = [_frame(box, scale, size) for _, _, box in boxes]
    labels: list[Rectangle] = []
    marks = []
    for number, ((kind, text, _), frame) in enumerate(zip(boxes, frames, strict=True)):
        label = None
        if number < MAX_LABELS and (kind not in RIGHT or len(boxes) <= FEW_BOXES):
            width, height = round(_font(font_size).getlength(text)) + 8, font_size + 5
            x, y = place_label((width, height), frame, size, labels, frames[:number] + frames[number + 1 :])
            covered = sum(
                max(min(x + width, right) - max(x, left), 0) * max(min(y + height, bottom) - max(y, top), 0)
                for left, top, right, bottom in labels
            )
            if covered <= MAX_COVERED * width * height:
                label = (x, y, width, height)
                labels.append((x, y, x + width, y + height))
        x1, y1, x2, y2 = frame
        marks.append(Mark(kind, text, round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1), label))
    return marks[::-1]


def _frame(box: np.ndarray, scale: float, size: tuple[int, int]) -> Rectangle:
    """x1 y1 x2 y2 of a box in the picture, clipped to it."""
    x, y, width, height = (float(value) * scale for value in box)
    x1, y1 = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
    return x1, y1, min(max(x + width, x1 + 1), size[0]), min(max(y + height, y1 + 1), size[1])


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
