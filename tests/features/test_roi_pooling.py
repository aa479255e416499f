"""RoI max pooling held to a plain reading of it, RoIAlign to torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil, floor

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from detkit.errors import ConfigError
from detkit.features import RoIPooler, pooled_cells, sampled_points
from detkit.types import Regions


def some_boxes(count: int, side: float, smallest: float = 2.0, largest: float = 200.0) -> Tensor:
    corner = torch.rand(count, 2) * side * 0.8
    extent = smallest * (largest / smallest) ** torch.rand(count, 2)
    return torch.cat((corner, (corner + extent).clamp(max=side)), dim=1)


def plain_max_pooling(feature: Tensor, box: list[float], cells: int, stride: int) -> Tensor:
    """Fast R-CNN's layer as its code has it: inclusive corners, rounded; cells from floor to ceil."""
    channels, height, width = feature.shape
    x1, y1, x2, y2 = (floor(v / stride + 0.5) for v in (box[0], box[1], box[2] - 1, box[3] - 1))
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    result = torch.zeros(channels, cells, cells)
    for row in range(cells):
        for column in range(cells):
            top, bottom = (min(max(v + y1, 0), height) for v in (floor(row * h / cells), ceil((row + 1) * h / cells)))
            left, right = (
                min(max(v + x1, 0), width) for v in (floor(column * w / cells), ceil((column + 1) * w / cells))
            )
            if top < bottom and left < right:
                result[:, row, column] = feature[:, top:bottom, left:right].amax((1, 2))
    return result


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("cells", [2, 7])
def test_max_pooling_equals_a_plain_reading(stride: int, cells: int) -> None:
    features = torch.randn(2, 3, 12, 15)
    side = 12.0 * stride
    boxes = [
        some_boxes(12, side),
        torch.cat((some_boxes(8, side), torch.tensor([[0, 0, side, side], [40.0, 40, 41, 41]]))),
    ]
    pooled = RoIPooler("max", cells, [stride])([features], Regions.of(boxes).rois)
    expected = [
        plain_max_pooling(feature, box, cells, stride)
        for feature, own in zip(features, boxes, strict=True)
        for box in own.tolist()
    ]
    assert torch.equal(pooled, torch.stack(expected))


def test_corners_of_max_pooling_are_inclusive() -> None:
    """Half-open (0, 0, 32, 32) is inclusive (0, 0, 31, 31): at stride 16, cells 0 to 2 of rounding, not 0 to 1."""
    feature = torch.arange(36.0).reshape(1, 1, 6, 6)
    box = [torch.tensor([[0.0, 0, 24, 24]])]  # 23 / 16 rounds to 1; 24 / 16 would round to 2
    assert RoIPooler("max", 1, [16])([feature], Regions.of(box).rois).item() == 7


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("bins", [2, 5])
def test_the_cells_of_a_bin_are_those_it_is_the_largest_of(stride: int, bins: int) -> None:
    feature = torch.randn(1, 1, 12, 15)
    boxes = some_boxes(20, 12.0 * stride)
    pooled = RoIPooler("max", bins, [stride])([feature], Regions.of([boxes]).rois)
    for box, values in zip(boxes, pooled[:, 0], strict=True):
        for cells, value in zip(pooled_cells(box, stride, bins).flatten(0, 1).tolist(), values.flatten(), strict=True):
            left, top, right, bottom = (max(each, 0) for each in cells)
            inside = feature[0, 0, top:bottom, left:right]
            assert value == (inside.max() if inside.numel() else 0)


def test_the_bins_of_the_courses_8_by_8_map() -> None:
    """The region of 7 x 5 cells in 2 x 2 bins: rounded outward, they share a column and a row."""
    cells = pooled_cells(torch.tensor([0.0, 3, 7, 8]), 1, 2)
    assert cells.tolist() == [[[0, 3, 4, 6], [3, 3, 7, 6]], [[0, 5, 4, 8], [3, 5, 7, 8]]]


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_the_samples_of_a_bin_are_those_it_is_the_mean_of(ratio: int) -> None:
    stride, bins = 8, 3
    feature = torch.randn(1, 1, 12, 12)
    boxes = torch.cat([some_boxes(10, 80.0), torch.tensor([[10.0, 20, 12, 21]])])  # the last one is below a cell
    pooled = RoIPooler("align", bins, [stride], ratio)([feature], Regions.of([boxes]).rois)

    def value_at(x: float, y: float) -> float:
        x, y = x - 0.5, y - 0.5  # cells count from their middles
        left, top = min(int(x), 10), min(int(y), 10)
        across, down = min(x - left, 1.0), min(y - top, 1.0)
        (a, b), (c, d) = feature[0, 0, top : top + 2, left : left + 2].tolist()
        return (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)

    for box, values in zip(boxes, pooled[:, 0], strict=True):
        points = sampled_points(box, stride, bins, ratio)
        assert points.shape == (bins, bins, ratio, ratio, 2)
        for row in range(bins):
            for column in range(bins):
                of_bin = points[row, column].reshape(-1, 2).tolist()
                expected = sum(value_at(x, y) for x, y in of_bin) / len(of_bin)
                assert values[row, column].item() == pytest.approx(expected, abs=1e-5)


def test_align_equals_torchvisions_on_a_pyramid() -> None:
    strides = [4, 8, 16, 32]
    features = [torch.randn(2, 5, 640 // s, 640 // s) for s in strides]
    boxes = [some_boxes(40, 640, 4, 640), some_boxes(30, 640, 4, 640)]
    pooler = RoIPooler("align", 7, strides)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = theirs(OrderedDict(zip("0123", features, strict=True)), boxes, [(640, 640)] * 2)
    assert pooler.levels(torch.cat(boxes)).unique().tolist() == [0, 1, 2, 3]
    pooled = pooler([*features, torch.zeros(2, 5, 10, 10)], Regions.of(boxes).rois)  # the last map is not read
    torch.testing.assert_close(pooled, expected, rtol=0, atol=2e-6)


def test_levels_by_area() -> None:
    """Lin et al. 2017, equation 1: 224 px is level 4 (stride 16), half of it one level finer."""
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000, 0])
    boxes = torch.stack((torch.zeros(9), torch.zeros(9), sides, sides), dim=1)
    assert RoIPooler("align", 7, [4, 8, 16, 32]).levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]
    assert RoIPooler("align", 7, [8, 16]).levels(boxes).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]
    with pytest.raises(ConfigError, match="'avg'; the known ones are max, align"):
        RoIPooler("avg", 7, [16])


@pytest.mark.parametrize("kind", ["max", "align"])
@pytest.mark.parametrize("strides", [[8], [8, 16]])
def test_no_boxes(kind: str, strides: list[int]) -> None:
    features = [torch.randn(2, 3, 64 // s, 64 // s, requires_grad=True) for s in strides]
    pooler = RoIPooler(kind, 7, strides)
    none = pooler(features, torch.zeros(0, 5))
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    some = pooler(features, torch.tensor([[1.0, 0, 0, 30, 30]]))
    alone = pooler([f[1:] for f in features], torch.tensor([[0.0, 0, 0, 30, 30]]))
    assert torch.equal(some, alone)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_degenerate_boxes_are_finite(kind: str) -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [64, 64, 64, 64], [-10, -10, -5, -5], [60, 60, 200, 200]])
    rois = Regions.of([boxes]).rois
    assert RoIPooler(kind, 3, [8, 16])([torch.randn(1, 2, 8, 8), torch.randn(1, 2, 4, 4)], rois).isfinite().all()


@pytest.mark.parametrize("kind", ["max", "align"])
@pytest.mark.parametrize("strides", [[4], [4, 8]])
def test_half_features(kind: str, strides: list[int]) -> None:
    """Coordinates stay float32: in bfloat16 those above 256 would be whole pairs of pixels."""
    features = [torch.randn(1, 3, 640 // s, 640 // s).bfloat16() for s in strides]
    rois = Regions.of([some_boxes(20, 600, 20, 300)]).rois
    pooler = RoIPooler(kind, 7, strides)
    pooled = pooler(features, rois)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, pooler([f.float() for f in features], rois).bfloat16())


def test_gradients_reach_every_level() -> None:
    features = [torch.randn(1, 2, 256 // s, 256 // s, requires_grad=True) for s in (4, 8)]
    rois = torch.tensor([[0.0, 10, 10, 60, 60], [0, 0, 0, 250, 250]])
    RoIPooler("align", 7, [4, 8])(features, rois).square().sum().backward()
    assert all(f.grad.abs().sum() > 0 for f in features)
