"""RoI pooling: what is drawn is what `RoIPooler` computes."""

from __future__ import annotations

import pytest
import torch
from matplotlib.patches import Circle

from detkit import show
from detkit.errors import ConfigError
from detkit.features import RoIPooler, pooled_cells, sampled_points

from .conftest import rectangles, texts


@pytest.mark.parametrize(("stride", "bins"), [(1, 2), (8, 3), (8, 5)])
def test_max_pooling_shows_the_cells_of_each_bin_and_the_largest_of_them(stride: int, bins: int) -> None:
    feature = torch.rand(9, 8)
    box = torch.tensor([0.6, 2.8, 6.5, 8.4]) * stride
    left, right = show.pooling(feature, box, stride, bins).axes
    pooled = RoIPooler("max", bins, [stride])([feature[None, None]], torch.tensor([[0.0, *box.tolist()]]))[0, 0]
    assert texts(right) == [f"{value:.2f}" for value in pooled.flatten().tolist()]
    assert texts(left) == [f"{value:.2f}" for value in feature.flatten().tolist()]
    cells = pooled_cells(box, stride, bins).flatten(0, 1).tolist()
    *drawn, region = rectangles(left)
    assert region == pytest.approx((box / stride).tolist())
    for (x1, y1, x2, y2), inner in zip(cells, drawn, strict=True):
        assert 0 < inner[0] - x1 < 0.25 and 0 < inner[1] - y1 < 0.25
        assert 0 < x2 - inner[2] < 0.25 and 0 < y2 - inner[3] < 0.25
    circles = [patch.center for patch in left.patches if isinstance(patch, Circle)]
    assert [feature[int(y), int(x)].item() for x, y in circles] == pooled.flatten().tolist()
    assert list(left.images[0].get_extent()) == [0, 8, 9, 0]


def test_the_courses_8_by_8_map() -> None:
    rows = """.88 .44 .14 .16 .37 .77 .96 .27  .19 .45 .57 .16 .63 .29 .71 .70  .66 .26 .82 .64 .54 .73 .59 .26
              .85 .34 .76 .84 .29 .75 .62 .25  .32 .74 .21 .39 .34 .03 .33 .48  .20 .14 .16 .13 .73 .65 .96 .32
              .19 .69 .09 .86 .88 .07 .01 .48  .83 .24 .97 .04 .24 .35 .50 .91"""
    feature = torch.tensor([float(value) for value in rows.split()]).reshape(8, 8)
    _, right = show.pooling(feature, torch.tensor([0.0, 3, 7, 8]), 1, 2).axes
    assert texts(right) == ["0.85", "0.96", "0.97", "0.96"]


def test_align_shows_the_points_of_each_bin() -> None:
    feature, box = torch.rand(16, 20), torch.tensor([20.0, 30, 81, 100])
    left, right = show.pooling(feature, box, 8, 3, "align", sampling_ratio=2).axes
    points = sampled_points(box, 8, 3, 2).flatten(0, 1).flatten(1, 2)
    assert [each.get_offsets().tolist() for each in left.collections] == points.tolist()
    *bins, region = rectangles(left)
    assert len(bins) == 9 and region == pytest.approx([2.5, 3.75, 10.125, 12.5])
    for (x1, y1, x2, y2), inside in zip(bins, points, strict=True):
        own = inside - 0.5  # RoIPooler's convention
        assert ((own > torch.tensor([x1, y1])) & (own < torch.tensor([x2, y2]))).all()
    pooled = RoIPooler("align", 3, [8], 2)([feature[None, None]], torch.tensor([[0.0, *box.tolist()]]))
    assert texts(right) == [f"{value:.2f}" for value in pooled.flatten().tolist()]
    assert texts(left) == []  # no room for the values of 20 cells


def test_what_is_no_map_is_refused() -> None:
    box = torch.tensor([0.0, 0, 8, 8])
    with pytest.raises(ConfigError, match=r"give \(H, W\), not \(3, 8, 8\)"):
        show.pooling(torch.rand(3, 8, 8), box, 1, 2)
    with pytest.raises(ConfigError, match="'mean'; the known ones are max, align"):
        show.pooling(torch.rand(8, 8), box, 1, 2, "mean")
