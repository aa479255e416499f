"""Sets of images as plain Python, as an EvaluationSet, and matched and evaluated by the plain definition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.evaluation.evaluation_set import EvaluationSet

Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass
class Thing:
    """An object."""

    box: Box
    label: int
    difficult: bool = False
    crowd: bool = False

    @property
    def ignored(self) -> bool:
        return self.difficult or self.crowd


@dataclass
class Found:
    """A detection."""

    box: Box
    label: int
    score: float


Image = tuple[list[Thing], list[Found]]


def flat(images: list[Image]) -> EvaluationSet:
    things = [thing for image in images for thing in image[0]]
    found = [detection for image in images for detection in image[1]]
    boxes = np.array([thing.box for thing in things], np.float64).reshape(-1, 4)
    return EvaluationSet(
        image_ids=list(range(len(images))),
        boxes=boxes,
        labels=np.array([thing.label for thing in things], np.int32),
        difficult=np.array([thing.difficult for thing in things], bool),
        crowd=np.array([thing.crowd for thing in things], bool),
        area=boxes[:, 2] * boxes[:, 3],
        object_offsets=np.cumsum([0, *(len(image[0]) for image in images)]),
        detected_boxes=np.array([detection.box for detection in found], np.float64).reshape(-1, 4),
        scores=np.array([detection.score for detection in found], np.float64),
        detected_labels=np.array([detection.label for detection in found], np.int32),
        detection_offsets=np.cumsum([0, *(len(image[1]) for image in images)]),
    )


def random_images(seed: int, classes: int = 3, flags: bool = True) -> list[Image]:
    """Few images on a coarse grid: ties of scores and of IoUs, images with nothing, most detections near an object."""
    rng = np.random.default_rng(seed)

    def box() -> Box:
        return tuple(float(v) for v in (*rng.integers(0, 16, 2), *rng.integers(2, 13, 2)))

    images: list[Image] = []
    for _ in range(rng.integers(0, 6)):
        things = [
            Thing(box(), int(rng.integers(1, classes + 1)), flags and rng.random() < 0.1, flags and rng.random() < 0.1)
            for _ in range(rng.integers(0, 6))
        ]
        found = []
        for _ in range(rng.integers(0, 12)):
            place, label = box(), int(rng.integers(1, classes + 1))
            if things and rng.random() < 0.7:
                near = things[rng.integers(len(things))]
                x, y, w, h = near.box
                place = (x + float(rng.integers(-3, 4)), y, w, max(1.0, h + float(rng.integers(-3, 4))))
                label = near.label if rng.random() < 0.7 else label
            found.append(Found(place, label, float(rng.integers(0, 9)) / 8))
        images.append((things, found))
    return images


def iou(a: Box, b: Box, crowd: bool = False) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


def match(image: Image, threshold: float = 0.5) -> list[int]:
    """For each detection of one image, the number of the object that it takes by COCO's rule, or -1."""
    things, found = image
    taken: set[int] = set()
    result = [-1] * len(found)
    for d in sorted(range(len(found)), key=lambda d: -found[d].score):
        for ignored in (False, True):
            free = [
                (iou(found[d].box, thing.box, thing.crowd), t)
                for t, thing in enumerate(things)
                if thing.label == found[d].label and thing.ignored == ignored and (thing.crowd or t not in taken)
            ]
            best = max(free, default=(0.0, -1))
            if best[0] >= threshold:
                result[d] = best[1]
                taken.add(best[1])
                break
    return result


def average_precision(hits: list[bool], objects: int) -> float:
    """COCO's: the mean over 101 recalls of the best precision at that recall or beyond."""
    points = [(sum(hits[:n]) / objects, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    best = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101).tolist()]
    return sum(best) / 101


def average_precisions(images: list[Image], classes: int, threshold: float = 0.5) -> list[float | None]:
    """The AP of each class; of one without objects 0 if it has misses, else None."""
    result: list[float | None] = []
    takes = [match(image, threshold) for image in images]
    for label in range(1, classes + 1):
        points: list[tuple[float, bool]] = []
        objects = 0
        for (things, found), taken in zip(images, takes, strict=True):
            objects += sum(thing.label == label and not thing.ignored for thing in things)
            for detection, t in zip(found, taken, strict=True):
                if detection.label == label and (t < 0 or not things[t].ignored):
                    points.append((detection.score, t >= 0))
        points.sort(key=lambda point: -point[0])
        if objects:
            result.append(average_precision([hit for _, hit in points], objects))
        else:
            result.append(0.0 if points else None)
    return result
