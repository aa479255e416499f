"""A picture of an image for the gallery: the photo, small, and what is to be drawn over it.

The photo is in the page once, as a JPEG; ground truth and detections are laid over it as SVG, so that lines and labels
are sharp at any size and weigh little.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detkit.data.image_io import read_image
from detkit.errors import DataError
from detkit.evaluation.errors import ERROR_KINDS
from detkit.labelling import Rectangle, place_label

from .gallery import Verdict, error_words
from .svg import plain_label

if TYPE_CHECKING:
    from detkit.evaluation.analysis import Analysis
    from detkit.evaluation.evaluation_set import EvaluationSet

Images = Mapping[Any, str | PathLike[str]] | Callable[[Any], str | PathLike[str] | None]

LONGEST_SIDE = 480  # of a picture, in pixels
QUALITY = 70  # of its JPEG
MOST_BOXES, MOST_LABELS = 80, 24  # in a panel: more could not be told apart
RIGHT = ("hit", "found", "ignored")  # kinds that are no error
FEW_BOXES = 8  # so few are all labelled, otherwise only what is wrong
MOST_COVERED = 0.3  # of a label, by other labels, or it is left out


@dataclass(frozen=True, slots=True)
class Mark:
    """A box in a picture: its kind (an error, "hit", "found", "missed", "below" or "ignored"), box and label.

    Coordinates in the picture's pixels; `label` is where its text stands, None where there is no room for it.
    """

    kind: str
    text: str
    x: float
    y: float
    width: float
    height: float
    label: Rectangle | None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the gallery.

    Attributes:
        number: of the image in the set; unique in the page.
        name: its id, and the file's name where it says more.
        words: what is right and wrong in it.
        photo: the JPEG as a data URI; None where the file cannot be read.
        problem: why not.
        width, height: of the picture.
        font_size: of the labels, in its pixels.
        truth, detections: what to draw, in this order.
        left_out: how many boxes were too many to draw.
    """

    number: int
    name: str
    words: str
    photo: str | None
    problem: str
    width: int
    height: int
    font_size: int
    truth: list[Mark]
    detections: list[Mark]
    left_out: int


def make_picture(
    evaluation_set: EvaluationSet,
    analysis: Analysis,
    verdict: Verdict,
    image: int,
    images: Images,
    font_size: int = 15,
) -> Picture:
    """The picture of image number `image` of the set."""
    s = evaluation_set
    objects = np.arange(*s.object_offsets[image : image + 2])
    detections = np.arange(*s.detection_offsets[image : image + 2])
    detections = detections[verdict.shown[detections]]
    path = _find(images, s.image_ids[image])
    photo, size, problem = _read(path)
    if size is None:
        size = _extent(np.concatenate((s.boxes[objects], s.detected_boxes[detections])))
    scale = LONGEST_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)

    truth = [(*_truth_words(s, analysis, verdict, row), s.boxes[row]) for row in objects.tolist()]
    found = [(*_detection_words(s, analysis, row), s.detected_boxes[row]) for row in detections.tolist()]
    image_id = s.image_ids[image]
    name = "image without an id" if image_id is None else str(image_id)
    if path is not None and Path(path).stem != name and Path(path).name != name:
        name += f" ({Path(path).name})"
    return Picture(
        number=image,
        name=plain_label(name, 60),
        words=error_words(s, analysis, verdict, image),
        photo=photo,
        problem=problem,
        width=width,
        height=height,
        font_size=font_size,
        truth=_marks(truth, scale, (width, height), font_size),
        detections=_marks(found, scale, (width, height), font_size),
        left_out=max(0, len(truth) - MOST_BOXES) + max(0, len(found) - MOST_BOXES),
    )


def _find(images: Images, image_id: Any) -> str | PathLike[str] | None:
    try:
        return images(image_id) if callable(images) else images.get(image_id)
    except (LookupError, DataError, OSError):
        return None


def _read(path: str | PathLike[str] | None) -> tuple[str | None, tuple[int, int] | None, str]:
    """The photo as a data URI, the (width, height) of the image itself, and what was wrong."""
    from PIL import Image

    if path is None:
        return None, None, "The image file is not at hand."
    try:
        image = Image.fromarray(read_image(path))
    except (DataError, OSError, ValueError) as error:
        missing = isinstance(error, DataError) and not Path(path).exists()
        return None, None, f"The image file {'is missing' if missing else 'cannot be read'}."
    size = image.size
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), size, ""


def _extent(boxes: np.ndarray) -> tuple[int, int]:
    """A (width, height) that holds all boxes (N, 4)."""
    if not len(boxes):
        return 4, 3
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    return max(1, round(float(right) * 1.03)), max(1, round(float(bottom) * 1.03))


def _truth_words(s: EvaluationSet, analysis: Analysis, verdict: Verdict, row: int) -> tuple[str, str]:
    """Kind and text of an object."""
    name = _name(analysis, s.labels[row])
    if not verdict.to_find[row]:
        why = "crowd" if s.crowd[row] else "difficult" if s.difficult[row] else "class not evaluated"
        return "ignored", f"{name} · {why}"
    if verdict.found[row]:
        return "found", name
    if not np.isnan(verdict.found_score[row]):
        return "below", f"{name} · score {verdict.found_score[row]:.2f} too low"
    return "missed", f"{name} · {'missed' if analysis.errors.missed[row] else 'not found'}"


def _detection_words(s: EvaluationSet, analysis: Analysis, row: int) -> tuple[str, str]:
    """Kind and text of a detection."""
    text, kind = f"{_name(analysis, s.detected_labels[row])} {s.scores[row]:.2f}", analysis.errors.kind[row]
    if kind >= 0:
        return ERROR_KINDS[kind], f"{text} · {ERROR_KINDS[kind]}"
    return ("ignored", f"{text} · ignored") if analysis.assignment.ignored[row] else ("hit", text)


def _name(analysis: Analysis, label: int) -> str:
    names = analysis.class_names
    return plain_label(names[label - 1], 20) if 1 <= label <= len(names) else f"class {label}"


def _marks(boxes: list[tuple[str, str, np.ndarray]], scale: float, size: tuple[int, int], font_size: int) -> list[Mark]:
    """What to draw: what is wrong on top, and labelled first."""
    boxes = sorted(boxes, key=lambda box: box[0] in RIGHT)[:MOST_BOXES]  # stable: otherwise as they came
    frames = [_frame(box, scale, size) for _, _, box in boxes]
    taken: list[Rectangle] = []
    marks = []
    for number, ((kind, text, _), frame) in enumerate(zip(boxes, frames, strict=True)):
        label = None
        if number < MOST_LABELS and (kind not in RIGHT or len(boxes) <= FEW_BOXES):
            others = frames[:number] + frames[number + 1 :]
            label = _place(_text_width(text, font_size) + 8, font_size + 5, frame, size, taken, others)
        if label is not None:
            taken.append((label[0], label[1], label[0] + label[2], label[1] + label[3]))
        x1, y1, x2, y2 = frame
        marks.append(Mark(kind, text, round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1), label))
    return marks[::-1]


def _place(
    width: int, height: int, frame: Rectangle, size: tuple[int, int], taken: list[Rectangle], others: list[Rectangle]
) -> Rectangle | None:
    """x, y, width and height of a label, None where other labels would hide it."""
    x, y = place_label((width, height), frame, size, taken, others)
    covered = sum(
        max(min(x + width, right) - max(x, left), 0) * max(min(y + height, bottom) - max(y, top), 0)
        for left, top, right, bottom in taken
    )
    return (x, y, width, height) if covered <= MOST_COVERED * width * height else None


def _frame(box: np.ndarray, scale: float, size: tuple[int, int]) -> Rectangle:
    """A box's edges in the picture, within it."""
    x, y, width, height = (float(value) * scale for value in box)
    x1, y1 = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
    return x1, y1, min(max(x + width, x1 + 1), size[0]), min(max(y + height, y1 + 1), size[1])


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text_width(text: str, font_size: int) -> int:
    return round(_font(font_size).getlength(text))
