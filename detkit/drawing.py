"""Draws detections on an image, with labels that can be read on any background."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from detkit.data.image_io import ImageLike

Rectangle = tuple[float, float, float, float]  # x1 y1 x2 y2

SHORTER_SIDE, LONGER_SIDE = 240, 4000


def draw(
    image: ImageLike,
    detections: Mapping[str, Tensor] | None,
    targets: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.5,
) -> Image:
    """A picture of the image with its detections, each class in its own colour.

    Args:
        image: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W).
        detections: ``boxes`` (N, 4) in the image's pixels, ``labels`` (N,) from 1, and ``scores`` (N,) where known.
        targets: ground truth in the same format, drawn in white below the detections.
        class_names: names of the labels; by default those that `predict` stores in its detections, otherwise numbers.
        score_threshold: detections with a lower score (0-1) are left out; 0 draws all.

    Returns:
        A PIL image of the same size, or enlarged by a whole factor so that labels can be read (`SHORTER_SIDE`).

    Raises:
        ImageTypeError, DataError: as `detkit.FasterRCNN.predict` does for the image.
    """
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    from detkit.data.image_io import as_array

    class_names = class_names if class_names is not None else getattr(detections, "class_names", None)
    picture = PILImage.fromarray(as_array(image))
    factor = max(1, min(-(-SHORTER_SIDE // min(picture.size)), LONGER_SIDE // max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    thickness = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(11, round(min(picture.size) / 32)))
    for box in targets["boxes"].tolist() if targets is not None else []:
        x1, y1, x2, y2 = _frame(box, factor, picture.size)
        pen.rectangle([x1 - 1, y1 - 1, x2 + 1, y2 + 1], outline="black", width=thickness + 2)
        pen.rectangle([x1, y1, x2, y2], outline="white", width=thickness)
    if detections is None:
        return picture
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(detections["boxes"])
    rows = zip(detections["boxes"].tolist(), detections["labels"].tolist(), scores, strict=True)
    shown = [
        (_frame(box, factor, picture.size), label, score)
        for box, label, score in rows
        if score is None or score >= score_threshold
    ]
    for frame, label, _ in reversed(shown):  # the best is drawn last
        pen.rectangle(frame, outline=colour(label), width=thickness)
    labels: list[Rectangle] = []
    for i, (frame, label, score) in enumerate(shown):
        known = class_names is not None and 1 <= label <= len(class_names)
        name = class_names[label - 1] if class_names is not None and known else str(label)
        text = name if score is None else f"{name} {score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        others = [other for j, (other, _, _) in enumerate(shown) if j != i]
        x, y = place_label((right - left + 6, bottom - top + 4), frame, picture.size, labels, others)
        labels.append((x, y, x + right - left + 6, y + bottom - top + 4))
        fill = colour(label)
        luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
        pen.rectangle(labels[-1], fill=fill)
        pen.text((x + 3 - left, y + 2 - top), text, fill="black" if luminance > 140 else "white", font=font)
    return picture


def make_sheet(pictures: Sequence[Image], columns: int, gap: int = 8) -> Image:
    """Pictures in rows on one white sheet, each in the upper left corner of a cell as large as the largest of them.

    Args:
        pictures: one or more PIL images.
        columns: pictures in a row; fewer if there are not so many.
        gap: pixels between cells.
    """
    from PIL import Image as PILImage

    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = PILImage.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def _frame(box: Sequence[float], factor: int, size: tuple[int, int]) -> Rectangle:
    """The first and last pixels of a box, clipped to the picture, at least one pixel."""
    x1, y1, x2, y2 = (value * factor for value in box)
    x1, y1 = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return x1, y1, min(max(x2 - 1, x1), size[0] - 1), min(max(y2 - 1, y1), size[1] - 1)


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label from 1; neighbouring labels are far apart in hue."""
    hue = (label * 0.618033988749895) % 1.0  # the golden ratio spreads any number of hues evenly
    r, g, b = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def place_label(
    label: tuple[float, float],
    frame: Rectangle,
    size: tuple[int, int],
    labels: Sequence[Rectangle],
    others: Sequence[Rectangle],
) -> tuple[int, int]:
    """A position for a label: at a corner of its box, within the picture, off other labels and small objects.

    Args:
        label: the label's width and height in pixels.
        frame: its box.
        size: width and height of the picture.
        labels, others: the labels that are drawn already, and the other boxes.

    Returns:
        x and y of its upper left corner, in whole pixels: Pillow cuts off text at fractions of pixels.
    """
    (width, height), (x1, y1, x2, y2) = label, frame
    corners = itertools.product((y1 - height, y2 + 1, y1, y2 - height), (x1, x2 - width))
    positions = [*corners, (y1, x2 + 1), (y1, x1 - width)]
    best, least = (0, 0), None
    for y, x in [position for position in positions if 0 <= position[0] <= size[1] - height - 1] or [(0, x1)]:
        position = (round(min(max(x, 0), max(size[0] - width - 1, 0))), round(y))
        area = (*position, position[0] + width, position[1] + height)
        covered = [_overlap(area, other) / _area(other) for other in others]
        cost = (sum(_overlap(area, other) for other in labels), sum(share for share in covered if share > 0.3))
        if least is None or cost < least:
            best, least = position, cost
    return best


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _area(a: Rectangle) -> float:
    return max((a[2] - a[0]) * (a[3] - a[1]), 1)
