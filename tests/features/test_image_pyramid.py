"""Regions that count once, and the scale each is read from, held to plain readings of test.py (papers.md 2.2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.features import PyramidFeatures, PyramidPooler, RoIPooler, distinct_rois, nearest_scale
from detkit.types import Regions


def some_boxes(count: int, side: float) -> Tensor:
    corner = (torch.rand(count, 2) * side * 0.8).round()
    return torch.cat((corner, (corner + 1 + (torch.rand(count, 2) ** 2 * side).round()).clamp(max=side)), dim=1)


@pytest.mark.parametrize("stride", [8, 16])
def test_equal_cells_are_found_as_the_authors_find_them(stride: int) -> None:
    boxes = some_boxes(1000, 64)
    inclusive = boxes.numpy().astype(np.float64) - [0, 0, 1, 1]
    hashes = np.round(inclusive / stride).dot(np.array([1e3, 1e6, 1e9, 1e12]))
    _, index = np.unique(hashes, return_index=True)
    assert 20 < len(index) < 900
    assert distinct_rois(boxes, stride).tolist() == sorted(index.tolist())


def test_those_left_out_have_the_features_of_those_that_stay() -> None:
    """What rounding to cells makes equal, pooling cannot tell apart (away from its own rounding of halves)."""
    boxes = some_boxes(400, 90) + 0.25
    features, pooler = torch.randn(1, 3, 12, 12), RoIPooler("max", 4, [16])
    kept = distinct_rois(boxes, 16)
    assert 20 < len(kept) < 350
    pooled = pooler([features], Regions.of([boxes]).rois).flatten(1)
    assert len(pooled[kept].unique(dim=0)) == len(pooled.unique(dim=0))


def test_groups_are_told_apart() -> None:
    boxes = torch.tensor([[0.0, 0, 33, 33]]).repeat(4, 1)
    assert distinct_rois(boxes, 16).tolist() == [0]
    assert distinct_rois(boxes, 16, torch.tensor([2, 0, 0, 2])).tolist() == [0, 1]
    assert distinct_rois(boxes[:0], 16).tolist() == []


def plain_scale(box: list[float], scales: list[float]) -> int:
    """_project_im_rois of the authors' test.py; its +1 makes inclusive boxes half-open."""
    size = (box[2] - box[0]) * (box[3] - box[1])
    distance = [abs(size * scale**2 - 224 * 224) for scale in scales]
    return distance.index(min(distance))


def test_regions_are_read_where_they_are_nearest_to_224_pixels() -> None:
    boxes = some_boxes(300, 500)
    scales = [480 / 375, 576 / 375, 688 / 375, 864 / 375, 1200 / 375]
    factors = torch.tensor(scales)[:, None].expand(5, 4) / scales[0]
    found, there = nearest_scale(boxes * scales[0], factors)
    expected = [plain_scale(box, scales) for box in boxes.tolist()]
    assert set(expected) == {0, 1, 2, 3, 4}
    assert found.tolist() == expected
    assert not nearest_scale(boxes, torch.ones(3, 4))[0].any()  # of equal scales the first
    torch.testing.assert_close(there, boxes * torch.tensor(scales)[found][:, None])


def test_a_pyramid_pools_every_region_from_its_own_scale() -> None:
    pooler = RoIPooler("max", 3, [16])
    factors = torch.tensor([[[1.0] * 4, [1.0] * 4], [[2.0] * 4, [1.5] * 4]])  # of two images at two scales
    maps = [[torch.randn(2, 5, 20, 20)], [torch.randn(2, 5, 40, 40)]]
    boxes = [some_boxes(20, 300), some_boxes(15, 300), torch.zeros(0, 4)][:2]
    pooled = PyramidPooler(pooler)(PyramidFeatures(maps, factors), Regions.of(boxes).rois)
    row, used = 0, set()
    for image, own in enumerate(boxes):
        for box in own:
            scale = plain_scale(box.tolist(), factors[:, image, 0].tolist())
            feature = maps[scale][0][image : image + 1]
            expected = pooler([feature], Regions.of([box[None] * factors[scale, image]]).rois)[0]
            assert torch.equal(pooled[row], expected)
            row, used = row + 1, used | {scale}
    assert used == {0, 1} and row == len(pooled) == 35


def test_without_a_pyramid_it_is_the_pooler_itself() -> None:
    pooler, feature, boxes = RoIPooler("max", 3, [16]), torch.randn(1, 5, 20, 20), [some_boxes(20, 300)]
    rois = Regions.of(boxes).rois
    assert torch.equal(PyramidPooler(pooler)([feature], rois), pooler([feature], rois))
    nothing = PyramidPooler(pooler)(PyramidFeatures([[feature]], torch.ones(1, 1, 4)), torch.zeros(0, 5))
    assert nothing.shape == (0, 5, 3, 3)
