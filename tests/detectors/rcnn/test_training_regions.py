"""The regions R-CNN's SVMs and regressors learn from, beside a plain loop over boxes and objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from detkit.data import Annotations
from detkit.data.annotations import AnnotationsBuilder
from detkit.detectors.rcnn.training_regions import ImageRegions, TrainingRegions

CLASSES = 3
Box = tuple[float, float, float, float]
Object = tuple[Box, int, bool, bool]  # box, label, difficult, crowd


def _annotations(*images: list[Object]) -> Annotations:
    builder = AnnotationsBuilder(".", 0)
    for number, objects in enumerate(images):
        image = builder.image(f"image{number}", f"{number}.png", 100, 100, "drawn")
        for i, (box, label, difficult, crowd) in enumerate(objects):
            builder.box(image, box, label, i, difficult, crowd)
    return builder.build()


def _regions(objects: list[Object], proposals: Any, **options: Any) -> ImageRegions:
    settings = {"num_classes": CLASSES, "max_proposals": None, "train_on_difficult": False, "min_iou": 0.6} | options
    return TrainingRegions(_annotations(objects), {"image0": proposals}, **settings)[0]


def _area(box: Any) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _shared(a: Any, b: Any) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _iou(a: Any, b: Any) -> float:
    return _shared(a, b) / (_area(a) + _area(b) - _shared(a, b))


OBJECTS: list[Object] = [
    ((10, 10, 50, 50), 1, False, False),
    ((45, 5, 90, 60), 3, True, False),  # difficult
    ((12, 14, 50, 55), 2, False, False),
    ((0, 60, 100, 100), 2, False, True),  # a crowd
    ((60, 30, 80, 55), 1, False, False),
]


def _proposals() -> np.ndarray:
    random = np.random.default_rng(0)
    near = np.repeat([box for box, *_ in OBJECTS], 8, axis=0) + random.normal(0, 4, (40, 4))
    inside = np.array([[5, 65, 25, 85], [50, 62, 99, 99], [20, 50, 40, 80]])  # wholly or partly in the crowd
    return np.concatenate((near, inside)).clip(0, 100).astype(np.float32)


@pytest.mark.parametrize("difficult", [False, True])
def test_beside_a_plain_loop(difficult: bool) -> None:
    proposals = _proposals()
    found = _regions(OBJECTS, proposals, train_on_difficult=difficult)
    learnt = [o for o in OBJECTS if not o[3] and (difficult or not o[2])]
    rows = [list(box) for box, *_ in learnt] + proposals.tolist()
    assert found.labels.tolist() == [label for _, label, *_ in learnt] == ([1, 3, 2, 1] if difficult else [1, 2, 1])
    torch.testing.assert_close(found.boxes, torch.tensor(rows))

    overlaps = torch.zeros(len(rows), CLASSES)
    for r, row in enumerate(rows):
        for box, label, _, crowd in OBJECTS:  # difficult or not: nobody's negative
            overlap = _shared(row, box) / _area(row) if crowd else _iou(row, box)
            overlaps[r, label - 1] = max(float(overlaps[r, label - 1]), overlap)
    torch.testing.assert_close(found.overlaps, overlaps)
    assert overlaps[-3, 1] == 1  # far from the crowd's box as a whole, but in it

    examples = []
    for r, row in enumerate(rows):
        ious = [_iou(row, box) for box, *_ in learnt]
        nearest = int(np.argmax(ious))
        if ious[nearest] > 0.6:
            g, label = learnt[nearest][0], learnt[nearest][1]
            pw, ph, gw, gh = row[2] - row[0], row[3] - row[1], g[2] - g[0], g[3] - g[1]
            dx = ((g[0] + g[2]) / 2 - (row[0] + row[2]) / 2) / pw
            dy = ((g[1] + g[3]) / 2 - (row[1] + row[3]) / 2) / ph
            examples.append((r, label, [dx, dy, np.log(gw / pw), np.log(gh / ph)]))
    assert len(examples) > len(learnt) + 5
    assert found.examples.tolist() == [r for r, *_ in examples]
    assert found.classes.tolist() == [label for _, label, _ in examples]
    torch.testing.assert_close(found.targets, torch.tensor([t for *_, t in examples]).float(), rtol=1e-4, atol=1e-5)


def test_the_best_proposals_behind_the_ground_truth() -> None:
    proposals = _proposals()
    found = _regions(OBJECTS, proposals, max_proposals=5)
    assert found.boxes[:3].tolist() == [list(OBJECTS[i][0]) for i in (0, 2, 4)]
    torch.testing.assert_close(found.boxes[3:], torch.from_numpy(proposals[:5]))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("objects", [[], OBJECTS[:1]], ids=["no object", "one"])
def test_without_objects_or_proposals(objects: list[Object], count: int) -> None:
    found = _regions(objects, _proposals()[:count])
    total = len(objects) + count
    assert found.boxes.shape == (total, 4) and found.overlaps.shape == (total, CLASSES)
    assert found.targets.shape == (len(found.examples), 4) and len(found.classes) == len(found.examples)
    assert len(found.labels) == len(objects)
    if not objects:
        assert not found.overlaps.any() and not len(found.examples)
    else:
        assert found.overlaps[0].tolist() == [1, 0, 0] and found.examples[0] == 0


def test_the_first_of_the_images_and_no_more() -> None:
    annotations = _annotations(OBJECTS[:1], OBJECTS[2:3], OBJECTS[4:])
    proposals = {f"image{i}": _proposals() for i in range(3)}
    first = TrainingRegions(annotations, proposals, CLASSES, None, False, 0.6, 2)
    assert len(first) == 2 and first[1].labels.tolist() == [2]
    for wrong in (2, -1):
        with pytest.raises(IndexError, match=f"image {wrong} of 2"):
            first[wrong]
    assert len(TrainingRegions(annotations, proposals, CLASSES, None, False, 0.6, 9)) == 3
