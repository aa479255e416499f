"""Large images in tiles: detected one by one, and put together where they meet.

The idea is that of SAHI (Akyon et al., 2022, arXiv:2202.06934); here a box that a tile cuts off is never trusted over
one that is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.boxes import area, batched_nms, box_ioa
from detkit.settings import check_range
from detkit.types import Batch, Detections, Sample

IOU = 0.5  # of two detections of a class, above which they are one object
PART = 0.5  # of a box that was cut off, above which it belongs to the box that it lies in
ALIKE = 0.7  # of two parts that meet: what they share of the edge, of what they cover of it together
EDGE = 1.0  # pixels from the edge of a tile within which a box is cut off there
INSIDE = 0.5  # of a proposal that has to lie in a tile
Detect = Callable[[Batch], list[Detections]]
Tile = tuple[int, int, int, int]  # x1 y1 x2 y2


@dataclass(frozen=True)
class TileSettings:
    """How large images are cut.

    Args:
        size: sides of a tile in pixels; an image without a longer side is not cut.
        overlap: of neighbouring tiles, as a share of their sides, 0 to 0.9; smaller objects are whole in one.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        check_range("tiles", self.size, 32)
        check_range("overlap", self.overlap, 0, 0.9)


def tiles_of(height: int, width: int, settings: TileSettings) -> list[Tile]:
    """The tiles of an image, row by row; the last of a row or column ends with the image, and overlaps more."""
    return [
        (x, y, min(x + settings.size, width), min(y + settings.size, height))
        for y in _starts(height, settings)
        for x in _starts(width, settings)
    ]


def _starts(side: int, settings: TileSettings) -> list[int]:
    if side <= settings.size:
        return [0]
    step = max(int(settings.size * (1 - settings.overlap)), 1)
    last = side - settings.size
    return [*range(0, last, step), last]


def detect_by_tiles(detect: Detect, batch: Batch, settings: TileSettings) -> list[Detections]:
    """Detections of each image, in its own pixels, best first.

    Of an image that is larger than a tile, its tiles and the image as a whole, which finds the objects that are larger
    than a tile, are detected. Images that fit a tile are detected as without tiles.

    Args:
        detect: of a detector, in evaluation mode.
        batch: samples; their proposals, if there are, go to the tiles that they lie in. As many tiles as the batch has
            images go through the network together.
        settings: of the tiles.
    """
    large = [max(sample["image"].shape[-2:]) > settings.size for sample in batch]
    small = [sample for sample, is_large in zip(batch, large, strict=True) if not is_large]
    found = iter(detect(small) if small else [])
    return [
        _detect_large(detect, sample, settings, len(batch)) if is_large else next(found)
        for sample, is_large in zip(batch, large, strict=True)
    ]


def _detect_large(detect: Detect, sample: Sample, settings: TileSettings, at_once: int) -> Detections:
    height, width = sample["image"].shape[-2:]
    tiles = tiles_of(height, width, settings)
    found = [_Found((0, 0, width, height), *_fields(detect([sample])[0]))]
    for start in range(0, len(tiles), at_once):
        part = tiles[start : start + at_once]
        results = detect([_cut(sample, tile) for tile in part])
        found += [_Found(tile, *_fields(result)) for tile, result in zip(part, results, strict=True)]
    return merge(found, (height, width))


def _cut(sample: Sample, tile: Tile) -> Sample:
    """The part of a sample that lies in a tile."""
    x1, y1, x2, y2 = tile
    part: Sample = {"image": sample["image"][:, y1:y2, x1:x2]}
    if "proposals" in sample:
        boxes = sample["proposals"]
        bounds = boxes.new_tensor(tile)
        inside = torch.cat([boxes[:, :2].maximum(bounds[:2]), boxes[:, 2:].minimum(bounds[2:])], dim=1)
        keep = (inside[:, 2:] > inside[:, :2]).all(1) & (area(inside) >= INSIDE * area(boxes))
        part["proposals"] = inside[keep] - bounds[:2].repeat(2)
    return part


class _Found(NamedTuple):
    """The detections of a tile, in its own pixels."""

    tile: Tile
    boxes: Tensor
    scores: Tensor
    labels: Tensor


def _fields(detections: Detections) -> tuple[Tensor, Tensor, Tensor]:
    return detections["boxes"], detections["scores"], detections["labels"]


def merge(found: list[_Found], size: tuple[int, int]) -> Detections:
    """The detections of all tiles as those of the image.

    1. Boxes that reach an edge of their tile, which is none of the image, are cut off. One that lies for more than half
       of its area in a whole box of its class is left out.
    2. Of what is left of a class, two that were cut off by different tiles are parts of one object if they share more
       than half of the smaller one, or meet at the edges where they were cut off and are about as long there: they
       become their common rectangle, with the higher score.
    3. Non-maximum suppression within each class.

    Args:
        found: for each tile.
        size: height and width of the image.
    """
    boxes = torch.cat([each.boxes + each.boxes.new_tensor(each.tile[:2]).repeat(2) for each in found])
    scores = torch.cat([each.scores for each in found])
    labels = torch.cat([each.labels for each in found])
    tile = torch.cat([each.labels.new_full((len(each.labels),), number) for number, each in enumerate(found)])
    cut = torch.cat([_cut_sides(each, size) for each in found])
    whole = torch.where(~cut.any(1))[0]
    parts = torch.where(cut.any(1))[0]
    inside = (box_ioa(boxes[parts], boxes[whole]) > PART) & (labels[parts, None] == labels[whole])
    parts = parts[~inside.any(1)]
    joined, joined_scores, joined_labels = _join(boxes[parts], scores[parts], labels[parts], tile[parts], cut[parts])
    boxes = torch.cat([boxes[whole], joined])
    scores = torch.cat([scores[whole], joined_scores])
    labels = torch.cat([labels[whole], joined_labels])
    keep = batched_nms(boxes, scores, labels, IOU)
    return Detections({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})


def _cut_sides(found: _Found, size: tuple[int, int]) -> Tensor:
    """Which sides of the boxes, x1 y1 x2 y2, reach an edge of the tile that is none of the image, (N, 4) bool."""
    x1, y1, x2, y2 = found.tile
    height, width = size
    return torch.stack(
        [
            (found.boxes[:, 0] <= EDGE) & (x1 > 0),
            (found.boxes[:, 1] <= EDGE) & (y1 > 0),
            (found.boxes[:, 2] >= x2 - x1 - EDGE) & (x2 < width),
            (found.boxes[:, 3] >= y2 - y1 - EDGE) & (y2 < height),
        ],
        dim=1,
    )


def _meet(box: Tensor, cut: Tensor, boxes: Tensor, cuts: Tensor) -> Tensor:
    """Which boxes (N, 4) go on where a box (4,) was cut off, (N,) bool; with the cut sides of each."""
    found = boxes.new_zeros(len(boxes), dtype=torch.bool)
    for axis in (0, 1):
        low, high, across = axis, axis + 2, 1 - axis
        shared = box[across + 2].minimum(boxes[:, across + 2]) - box[across].maximum(boxes[:, across])
        both = box[across + 2].maximum(boxes[:, across + 2]) - box[across].minimum(boxes[:, across])
        alike = shared > ALIKE * both
        after = cut[high] & cuts[:, low] & (boxes[:, low] <= box[high] + 2 * EDGE) & (boxes[:, high] > box[high])
        before = cut[low] & cuts[:, high] & (boxes[:, high] >= box[low] - 2 * EDGE) & (boxes[:, low] < box[low])
        found |= alike & (after | before)
    return found


def _shared_with_smaller(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) the share of the smaller box that lies in the other one."""
    return box_ioa(a, b).maximum(box_ioa(b, a).T)


def _join(boxes: Tensor, scores: Tensor, labels: Tensor, tile: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Join parts of one object, best first: each takes in the parts of other tiles that overlap it or meet it."""
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels, tile, cut = boxes[order].clone(), scores[order], labels[order], tile[order], cut[order]
    left = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    kept = []
    for index in range(len(boxes)):
        if not left[index]:
            continue
        kept.append(index)
        left[index] = False
        while True:  # what is joined may reach further parts
            shared = _shared_with_smaller(boxes[index : index + 1], boxes)[0]
            fits = (shared > PART) | _meet(boxes[index], cut[index], boxes, cut)
            other = left & (labels == labels[index]) & (tile != tile[index]) & fits
            if not other.any():
                break
            group = torch.cat([boxes[index : index + 1], boxes[other]])
            sides = torch.cat([cut[index : index + 1], cut[other]])
            ends = torch.cat([group[:, :2].argmin(0), group[:, 2:].argmax(0)])  # the box that each side is of
            sides_of = torch.arange(4, device=boxes.device)
            boxes[index], cut[index] = group[ends, sides_of], sides[ends, sides_of]
            left &= ~other
    return boxes[kept], scores[kept], labels[kept]
