"""What every evaluation reads: the objects and detections of a set of images, as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ImageId = int | str | None


@dataclass(frozen=True, eq=False, slots=True)
class EvaluationSet:
    """I images with G objects and D detections in all.

    Boxes are x, y, width, height in the pixels of the original image, in float64: COCO's own form, so that numbers
    from COCO's files are used as they are written.
    """

    image_ids: list[ImageId]  # I ids; None where none was given
    boxes: np.ndarray  # (G, 4) float64
    labels: np.ndarray  # (G,) int32, 1..K
    difficult: np.ndarray  # (G,) bool; difficult and crowd are both ignored
    crowd: np.ndarray  # (G,) bool; a crowd is a region rather than an object
    area: np.ndarray  # (G,) float64, square pixels: what COCO's ranges of areas go by
    object_offsets: np.ndarray  # (I + 1,) int64; image i has the rows object_offsets[i]:object_offsets[i + 1]
    detected_boxes: np.ndarray  # (D, 4) float64
    scores: np.ndarray  # (D,) float64
    detected_labels: np.ndarray  # (D,) int32, 1..K
    detection_offsets: np.ndarray  # (I + 1,) int64, likewise

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def ignored(self) -> np.ndarray:
        """(G,) bool: objects that need not be found, and may be."""
        return self.difficult | self.crowd

    def is_of(self, num_classes: int) -> np.ndarray:
        """(G,) bool: objects of the classes 1..num_classes."""
        return (self.labels >= 1) & (self.labels <= num_classes)

    def to_find(self, num_classes: int) -> np.ndarray:
        """(G,) bool: objects that count, of the classes 1..num_classes."""
        return ~self.ignored & self.is_of(num_classes)

    @property
    def object_images(self) -> np.ndarray:
        """(G,) int32: the number of each object's image."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.object_offsets))

    @property
    def detection_images(self) -> np.ndarray:
        """(D,) int32: the number of each detection's image."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.detection_offsets))


OBJECT_FIELDS = ("boxes", "labels", "difficult", "crowd", "area")
DETECTION_FIELDS = ("detected_boxes", "scores", "detected_labels")


def empty_set() -> EvaluationSet:
    """A set without images."""
    boxes, labels, flags, numbers = np.zeros((0, 4)), np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0)
    offsets = np.zeros(1, np.int64)
    return EvaluationSet([], boxes, labels, flags, flags, numbers, offsets, boxes, numbers, labels, offsets)


def merge(parts: Sequence[EvaluationSet]) -> EvaluationSet:
    """All images of `parts`, each once, in the order of `first_of_each`.

    A distributed sampler repeats images to make all ranks equally long. The fixed order makes results independent of
    who saw which image: detections with equal scores are ranked in it.
    """
    whole = _concatenate(parts)
    order = first_of_each(whole.image_ids)
    return whole if order == list(range(len(whole))) else select(whole, np.array(order, np.int64))


def first_of_each(image_ids: Sequence[ImageId]) -> list[int]:
    """The first position of each id, in the order of the ids: numbers, then strings, then all that are None."""
    first: dict[ImageId, int] = {}
    for position, image_id in enumerate(image_ids):
        first.setdefault(image_id, position)
    first.pop(None, None)
    order = [first[image_id] for image_id in sorted(first, key=lambda image_id: (isinstance(image_id, str), image_id))]
    return order + [position for position, image_id in enumerate(image_ids) if image_id is None]


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """(I + 1,) int64: where the rows of each image begin and end, from how many each of the I images has."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The whole numbers from starts[i] on, counts[i] of them, one range after the other (int64)."""
    offsets = offsets_of(counts)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)


def select(whole: EvaluationSet, images: np.ndarray) -> EvaluationSet:
    """The images of these numbers (int64), in this order."""
    object_rows, object_offsets = _rows(whole.object_offsets, images)
    detection_rows, detection_offsets = _rows(whole.detection_offsets, images)
    return EvaluationSet(
        image_ids=[whole.image_ids[i] for i in images.tolist()],
        object_offsets=object_offsets,
        detection_offsets=detection_offsets,
        **{name: getattr(whole, name)[object_rows] for name in OBJECT_FIELDS},
        **{name: getattr(whole, name)[detection_rows] for name in DETECTION_FIELDS},
    )


def _rows(offsets: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `images`, one image after the other, and their new offsets."""
    counts = np.diff(offsets)[images]
    return ranges(offsets[images], counts), offsets_of(counts)


def _concatenate(parts: Sequence[EvaluationSet]) -> EvaluationSet:
    if len(parts) == 1:
        return parts[0]
    parts = [empty_set(), *parts]
    names = (*OBJECT_FIELDS, *DETECTION_FIELDS)
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    for name in ("object_offsets", "detection_offsets"):
        joined[name] = offsets_of(np.concatenate([np.diff(getattr(part, name)) for part in parts]))
    return EvaluationSet(image_ids=[image_id for part in parts for image_id in part.image_ids], **joined)
