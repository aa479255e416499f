"""Where the label of a box stands, so that it can be read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Rectangle = tuple[float, float, float, float]


def place_label(
    label: tuple[float, float],
    frame: Rectangle,
    size: tuple[int, int],
    taken: Sequence[Rectangle],
    others: Sequence[Rectangle],
) -> tuple[int, int]:
    """Where a label stands: at a corner of its box, within the picture, off other labels and small objects.

    Above the box is tried first, then below it, within, and beside.

    Args:
        label: its width and height in pixels.
        frame: its box.
        size: width and height of the picture.
        taken: where labels stand already.
        others: the other boxes.

    Returns:
        x and y of its upper left corner: whole pixels, since text at fractions of them is cut by Pillow.
    """
    (width, height), (x1, y1, x2, y2) = label, frame
    corners = itertools.product((y1 - height, y2 + 1, y1, y2 - height), (x1, x2 - width))
    spots = [*corners, (y1, x2 + 1), (y1, x1 - width)]
    best, least = (0, 0), None
    for y, x in [spot for spot in spots if 0 <= spot[0] <= size[1] - height - 1] or [(0, x1)]:
        spot = (round(min(max(x, 0), max(size[0] - width - 1, 0))), round(y))
        ground = (*spot, spot[0] + width, spot[1] + height)
        covered = [_overlap(ground, other) / _area(other) for other in others]
        cost = (sum(_overlap(ground, each) for each in taken), sum(share for share in covered if share > 0.3))
        if least is None or cost < least:
            best, least = spot, cost
    return best


def _overlap(a: Rectangle, b: Rectangle) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _area(a: Rectangle) -> float:
    return max((a[2] - a[0]) * (a[3] - a[1]), 1)
