"""One picture of the Shapes data set: textured ground, anti-aliased shapes on it.

Every length scales with the image, so that a set of 256 px shows the scenes of one of
128 px in finer detail. All randomness comes from the generator that is passed in, so
the same seed gives the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from detkit.data.voc_xml import VOCObject

Array = np.ndarray
SHAPE_CLASSES = ("circle", "rectangle", "ring", "star", "triangle")

_SUPERSAMPLING = 4
_SMALLEST, _LARGEST = 28 / 128, 72 / 128  # extent of a shape as a share of the image's side
_MIN_VISIBLE = 0.3  # no shape may be covered further than this
_DIFFICULT_BELOW = 0.55  # visible share below which a shape counts as difficult
_EMPTY_SHARE = 0.08
_FAINT_SHARE = 0.05


class _Placed(NamedTuple):
    name: str
    mask: Array  # bool (H, W), what of the shape lies in the picture
    area: float  # pixels of the whole shape, also outside the picture
    faint: bool


def draw_scene(rng: np.random.Generator, size: int) -> tuple[Array, list[VOCObject]]:
    """Draw one square picture of `size` pixels a side.

    Returns it, uint8 (size, size, 3) RGB, and its objects with half-open boxes, from the bottom to the top.
    """
    image = _background(rng, size)
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.choice([1, 2, 3, 4, 5], p=[0.2, 0.27, 0.25, 0.18, 0.1]))
    placed: list[_Placed] = []
    for _ in range(count):
        for _attempt in range(12):
            shape, alpha, corner = _make_shape(rng, size)
            window, part = _overlap(alpha, corner, size)
            mask = np.zeros((size, size), bool)
            mask[window] = part >= 0.5
            if _acceptable(mask, alpha, placed):
                faint = bool(rng.random() < _FAINT_SHARE)
                _paint(image, alpha, corner, _colour(rng, image, mask, faint), rng)
                placed.append(_Placed(shape, mask, float(alpha.sum()), faint))
                break
    noise = rng.normal(0.0, rng.uniform(1.0, 5.0), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), _describe(placed, size)


def _visible(placed: list[_Placed], covered: Array) -> Iterator[tuple[_Placed, Array]]:
    """The shapes from the top to the bottom, with the mask of what neither `covered` nor a shape above hides."""
    for item in reversed(placed):
        yield item, item.mask & ~covered
        covered = covered | item.mask


def _describe(placed: list[_Placed], size: int) -> list[VOCObject]:
    objects = []
    for item, visible in _visible(placed, np.zeros((size, size), bool)):
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        difficult = item.faint or visible.sum() / item.area < _DIFFICULT_BELOW
        objects.append(VOCObject(item.name, box, bool(difficult)))
    return objects[::-1]


def _acceptable(mask: Array, alpha: Array, placed: list[_Placed]) -> bool:
    """Enough of the new shape lies inside, and it leaves enough of each shape below it."""
    return mask.sum() >= 0.45 * alpha.sum() and all(
        visible.sum() >= max(_MIN_VISIBLE * item.area, 12) for item, visible in _visible(placed, mask)
    )


# -- shapes ------------------------------------------------------------------


def _make_shape(rng: np.random.Generator, size: int) -> tuple[str, Array, tuple[int, int]]:
    """A class name, its coverage (h, w) in 0..1, and its top left corner (x, y)."""
    import cv2

    name = str(rng.choice(SHAPE_CLASSES))
    extent = float(np.exp(rng.uniform(math.log(_SMALLEST), math.log(_LARGEST)))) * size
    angle = rng.uniform(0, 2 * math.pi)
    outline, hole = _outline(name, rng)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = outline @ turn.T
    points *= extent / np.ptp(points, axis=0).max()
    side = math.ceil(extent) + 4
    fixed = 16  # cv2 takes fixed-point coordinates with 4 fractional bits
    centre = side / 2 - (points.max(0) + points.min(0)) / 2
    canvas = np.zeros((side * _SUPERSAMPLING, side * _SUPERSAMPLING), np.uint8)
    for scale, value in ((1.0, 255), (hole, 0)):
        if scale:
            corners = np.round((points * scale + centre) * _SUPERSAMPLING * fixed).astype(np.int32)
            cv2.fillPoly(canvas, [corners], value, shift=4)
    alpha = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    reach = int(extent * 0.3)  # shapes may leave the picture by about a third
    low, high = -reach, max(size - side + reach, -reach + 1)
    return name, alpha, (int(rng.integers(low, high)), int(rng.integers(low, high)))


def _outline(name: str, rng: np.random.Generator) -> tuple[Array, float]:
    """Corner points (P, 2) around the origin, and the hole's relative radius (0: no hole)."""
    if name in ("circle", "ring"):
        return _polar(np.ones(72)), float(rng.uniform(0.45, 0.65)) if name == "ring" else 0.0
    if name == "star":
        return _polar(np.tile([1.0, rng.uniform(0.38, 0.5)], 5)), 0.0
    if name == "triangle":
        return _polar(np.ones(3)) * [1.0, rng.uniform(0.75, 1.0)], 0.0
    half = rng.uniform(0.4, 1.0)
    return np.array([[-1.0, -half], [1.0, -half], [1.0, half], [-1.0, half]]), 0.0


def _polar(radii: Array) -> Array:
    angles = np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]


def _overlap(alpha: Array, corner: tuple[int, int], size: int) -> tuple[tuple[slice, slice], Array]:
    """The window of the image that the shape covers, and the part of the shape in it."""
    x, y = corner
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(min(y + alpha.shape[0], size), top), max(min(x + alpha.shape[1], size), left)
    return (slice(top, bottom), slice(left, right)), alpha[top - y : bottom - y, left - x : right - x]


def _paint(image: Array, alpha: Array, corner: tuple[int, int], colour: Array, rng: np.random.Generator) -> None:
    """Blend the shape onto the image: lit from one side, often with a darker or lighter rim."""
    import cv2

    size, side = image.shape[0], alpha.shape[0]
    rows, columns = np.mgrid[0:side, 0:side] / side - 0.5
    light = rng.uniform(0, 2 * math.pi)
    shade = 1 + rng.uniform(0.0, 0.35) * (math.cos(light) * columns + math.sin(light) * rows)
    paint = colour * shade[..., None]
    if rng.random() < 0.5:
        width = max(side // 16, 1)
        core = cv2.erode(alpha, np.ones((2 * width + 1, 2 * width + 1), np.uint8), borderValue=0)[..., None]
        paint = core * paint + (1 - core) * paint * rng.choice([0.6, 1.3])
    window, part = _overlap(alpha, corner, size)
    inside = _overlap(paint, corner, size)[1]
    image[window] += part[..., None] * (np.clip(inside, 0, 255) - image[window])


# -- colours and grounds ------------------------------------------------------


def _hsv(hue: float, saturation: float, value: float) -> Array:
    """RGB float64 (3,) in 0..255; the arguments are in 0..1."""
    import colorsys

    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value)) * 255


def _colour(rng: np.random.Generator, image: Array, mask: Array, faint: bool) -> Array:
    """A colour that stands out from what lies under the mask (or, if faint, hardly does)."""
    under = image[mask].mean(0)
    if faint:
        return np.clip(under + rng.choice([-1, 1], 3) * rng.uniform(12, 20, 3), 0, 255)
    best, distance = under, -1.0
    for _ in range(8):
        colour = _hsv(rng.random(), rng.uniform(0.45, 1.0), rng.uniform(0.35, 1.0))
        contrast = float(np.abs(colour - under).mean())
        if contrast > distance:
            best, distance = colour, contrast
        if distance > 60:
            break
    return best


def _background(rng: np.random.Generator, size: int) -> Array:
    """A textured ground: float64 (size, size, 3) in 0..255."""
    hue = rng.random()
    first = _hsv(hue, rng.uniform(0.05, 0.5), rng.uniform(0.2, 0.95))
    second = _hsv(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.5), rng.uniform(0.2, 0.95))
    kinds = (_clouds, _gradient, _stripes, _checks)
    share = kinds[int(rng.integers(len(kinds)))](rng, size)[..., None]
    return first * (1 - share) + second * share


def _clouds(rng: np.random.Generator, size: int) -> Array:
    import cv2

    total, weight = np.zeros((size, size)), 0.0
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        strength = 0.65**octave
        total += strength * cv2.resize(rng.random((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
        weight += strength
    return np.clip(total / weight, 0, 1)


def _axes(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    angle = rng.uniform(0, math.pi)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    along = math.cos(angle) * columns + math.sin(angle) * rows
    return along, -math.sin(angle) * columns + math.cos(angle) * rows


def _gradient(rng: np.random.Generator, size: int) -> Array:
    along, across = _axes(rng, size)
    if rng.random() < 0.5:
        return np.clip(along + 0.5, 0, 1)
    return np.clip(np.hypot(along - rng.uniform(-0.4, 0.4), across - rng.uniform(-0.4, 0.4)) * 1.3, 0, 1)


def _stripes(rng: np.random.Generator, size: int) -> Array:
    along, _ = _axes(rng, size)
    wave = np.sin(2 * math.pi * (rng.uniform(3, 10) * along + rng.random()))
    return 0.5 + 0.5 * np.clip(wave * rng.uniform(1, 5), -1, 1)


def _checks(rng: np.random.Generator, size: int) -> Array:
    along, across = _axes(rng, size)
    cells, steepness = rng.uniform(2, 6), rng.uniform(3, 9)
    wave = np.sin(2 * math.pi * cells * along) * np.sin(2 * math.pi * cells * across)
    return 0.5 + 0.5 * np.clip(wave * steepness, -1, 1)
