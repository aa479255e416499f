"""Draw detections on an image, labels readable on any ground."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detkit.detectors.prediction import as_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from detkit.detectors.prediction import ImageLike


def draw(
    image: ImageLike,
    detections: Mapping[str, Tensor] | None,
    targets: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    score_threshold: float = 0.5,
) -> Image:
    """A picture of the image with its detections, each class in a colour of its own.

    Args:
        image: a path, PIL image, uint8 RGB array (H, W, 3) or uint8 tensor (3, H, W).
        detections: ``boxes`` (N, 4) in the image's pixels, ``labels`` (N,) from 1, and ``scores`` (N,) where known.
        targets: ground truth in the same form, drawn white beneath.
        class_names: names of the labels; without them the numbers are shown.
        score_threshold: detections with a lower score are left out; 0 draws all.

    Returns:
        a new PIL image of the same size; small images are enlarged to a shorter side of 240 pixels or more, in whole
        multiples, so that the labels can be read.

    Raises:
        ImageTypeError, DataError: as `detkit.FasterRCNN.predict` does for the image.
    """
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    pixels = as_image(image)
    picture = PILImage.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    factor = max(1, -(-240 // min(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), PILImage.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    thickness = max(2, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(11, round(min(picture.size) / 32)))
    for box in targets["boxes"].tolist() if targets is not None else []:
        x1, y1, x2, y2 = (v * factor for v in box)
        pen.rectangle([x1 - 1, y1 - 1, x2, y2], outline="black", width=thickness + 2)
        pen.rectangle([x1, y1, x2 - 1, y2 - 1], outline="white", width=thickness)
    if detections is None:
        return picture
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(detections["boxes"])
    rows = list(zip(detections["boxes"].tolist(), detections["labels"].tolist(), scores, strict=True))
    for box, label, score in reversed(rows):  # the best lies on top
        if score is not None and score < score_threshold:
            continue
        name = class_names[label - 1] if class_names else str(label)
        text = name if score is None else f"{name} {score:.2f}"
        _labelled(pen, [v * factor for v in box], text, colour(label), thickness, font, picture.size)
    return picture


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label from 1; neighbouring labels are far apart in hue."""
    hue = (label * 0.618033988749895) % 1.0  # the golden ratio spreads any number of hues evenly
    r, g, b = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def _labelled(
    pen: Any, box: list[float], text: str, fill: tuple[int, int, int], thickness: int, font: Any, size: tuple[int, int]
) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle([x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=fill, width=thickness)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(x1, 0), max(size[0] - width, 0))
    y = y1 - height if y1 >= height else min(y1, size[1] - height)  # inside the box where there is no room above
    pen.rectangle([x, y, x + width, y + height], fill=fill)
    luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]
    pen.text((x + 3 - left, y + 2 - top), text, fill="black" if luminance > 140 else "white", font=font)
