"""Statistics of the regression targets, held to a plain reading of roidb.py (papers.md 2.2)."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.training import box_statistics

Image = tuple[Tensor, Tensor, Tensor]
NOTHING = torch.zeros(0, 4)


def some_images(count: int = 6, classes: int = 3) -> list[Image]:
    """Images with 0 to 3 objects, and proposals near them and anywhere."""
    images = []
    for number in range(count):
        corner = torch.rand(number % 4, 2) * 150
        boxes = torch.cat((corner, corner + 30 + torch.rand(number % 4, 2) * 80), dim=1)
        near = boxes.repeat(40, 1) + torch.randn(len(boxes) * 40, 4) * 8
        corner = torch.rand(30, 2) * 150
        anywhere = torch.cat((corner, corner + 5 + torch.rand(30, 2) * 90), dim=1)
        images.append((torch.cat((near, anywhere)), boxes, torch.randint(1, classes + 1, (len(boxes),))))
    return images


def overlap(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def mirror(boxes: Tensor, width: float = 300.0) -> Tensor:
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)


def plain(images: list[Image], classes: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Loops over every region, as the formula of the targets is written."""
    targets: dict[int, list[list[float]]] = {k: [] for k in range(1, classes + 1)}
    for proposals, boxes, labels in images:
        for ex in torch.cat((boxes, proposals)).tolist():
            overlaps = [overlap(ex, gt) for gt in boxes.tolist()]
            if not overlaps or max(overlaps) < 0.5:
                continue
            nearest = overlaps.index(max(overlaps))
            gt = boxes[nearest].tolist()
            ew, eh, gw, gh = ex[2] - ex[0], ex[3] - ex[1], gt[2] - gt[0], gt[3] - gt[1]
            dx = (gt[0] + gw / 2 - ex[0] - ew / 2) / ew
            dy = (gt[1] + gh / 2 - ex[1] - eh / 2) / eh
            targets[int(labels[nearest])].append([dx, dy, log(gw / ew), log(gh / eh)])
    means = np.array([np.mean(targets[k], axis=0) for k in targets])
    squares = np.array([np.mean(np.square(targets[k]), axis=0) for k in targets])
    return means, np.sqrt(squares - means**2), [len(targets[k]) for k in targets]


@pytest.mark.parametrize("mirrored", [False, True])
def test_statistics_equal_a_plain_reading_of_the_authors_code(mirrored: bool) -> None:
    images = some_images()
    found = box_statistics(images, 3, mirrored=mirrored)
    if mirrored:
        images = images + [(mirror(p), mirror(b), labels) for p, b, labels in images]
    mean, std, count = plain(images, 3)
    assert min(count) > 30 and (std > 0.05).all()
    assert found.count.tolist() == [0, *count]
    np.testing.assert_allclose(found.mean[1:], mean, atol=2e-6)
    np.testing.assert_allclose(found.std[1:], std, rtol=1e-4)
    assert (np.abs(mean[:, 0]).max() < 1e-6) == mirrored
    assert found.mean.dtype == found.std.dtype == torch.float32


def test_the_threshold_decides_what_is_an_example() -> None:
    half = torch.tensor([[0.0, 0, 100, 50], [0, 0, 100, 49]])
    image = (half, torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([1]))
    assert box_statistics([image], 1).count.tolist() == [0, 2]  # an IoU of exactly 0.5, and the object itself
    assert box_statistics([image], 1, foreground_iou=0.49).count.tolist() == [0, 3]
    assert box_statistics([image], 1, foreground_iou=0.6).count.tolist() == [0, 1]


def test_a_class_without_examples_has_those_of_all_classes() -> None:
    images = [(p, b, torch.ones_like(labels)) for p, b, labels in some_images()]
    found = box_statistics(images, 3)
    torch.testing.assert_close(found.mean[2:], found.mean[1:2].expand(2, 4))
    torch.testing.assert_close(found.std[2:], found.std[1:2].expand(2, 4))
    assert found.count[2:].tolist() == [0, 0]


@pytest.mark.parametrize(
    "images",
    [
        [],
        [(NOTHING, NOTHING, torch.zeros(0, dtype=torch.int64))],
        [(torch.rand(5, 4), NOTHING, torch.zeros(0, dtype=torch.int64))],
        [(NOTHING, torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([2]))],
    ],
    ids=["no image", "nothing", "no object", "no proposal"],
)
def test_deviations_can_always_be_divided_by(images: list[Image]) -> None:
    found = box_statistics(images, 2)
    assert found.std[1:].tolist() == [pytest.approx([0.1, 0.1, 0.2, 0.2])] * 2
    assert not found.mean.any() and found.std[0].tolist() == [1] * 4
