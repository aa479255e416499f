"""Anchors: torchvision's and the paper's."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from detkit.boxes import AnchorGenerator
from detkit.errors import ConfigError

# What py-faster-rcnn's generate_anchors.py quotes from the MATLAB code: inclusive and, as all of MATLAB, 1-based.
PAPER_TABLE = [
    [-83, -39, 100, 56],
    [-175, -87, 192, 104],
    [-359, -183, 376, 200],
    [-55, -55, 72, 72],
    [-119, -119, 136, 136],
    [-247, -247, 264, 264],
    [-35, -79, 52, 96],
    [-79, -167, 96, 184],
    [-167, -343, 184, 360],
]
FPN = [[32.0], [64.0], [128.0], [256.0], [512.0]]


def test_the_papers_golden_anchors() -> None:
    anchors = AnchorGenerator([[128, 256, 512]], [0.5, 1, 2], convention="paper")
    half_open = torch.tensor(PAPER_TABLE, dtype=torch.float32) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert torch.equal(anchors.cell_anchors[0], half_open)
    assert anchors.num_anchors == [9]


def test_the_paper_lays_them_16_pixels_apart_row_by_row() -> None:
    """anchor_target_layer.py: shifts are index * feat_stride, rows ordered (h, w, a)."""
    anchors = AnchorGenerator([[128, 256, 512]], [0.5, 1, 2], convention="paper", strides=[16])
    (laid,) = anchors([(3, 4)], (55, 70))  # strides come from the argument, not from 55 // 3
    expected = [anchors.cell_anchors[0] + 16 * torch.tensor([x, y, x, y]) for y in range(3) for x in range(4)]
    assert torch.equal(laid, torch.cat(expected))
    (from_sizes,) = AnchorGenerator([[128, 256, 512]], [0.5, 1, 2], convention="paper")([(3, 4)], (48, 64))
    assert torch.equal(from_sizes, laid)


@pytest.mark.parametrize(
    ("sizes", "ratios", "image", "maps"),
    [
        ([[128, 256, 512]], [0.5, 1.0, 2.0], (600, 800), [(37, 50)]),
        (FPN, [0.5, 1.0, 2.0], (800, 1088), [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]),
        ([[32, 64, 128, 256, 512]] * 2, [0.5, 1.0, 2.0], (320, 333), [(20, 21), (10, 11)]),
        ([[24, 31], [77]], [[0.33, 3.0], [1.0, 1.7, 0.6]], (65, 97), [(9, 13), (4, 7)]),
    ],
)
def test_equal_to_torchvision(sizes: list, ratios: list, image: tuple[int, int], maps: list) -> None:
    ours = AnchorGenerator(sizes, ratios)
    per_level = ratios if isinstance(ratios[0], list) else [ratios] * len(sizes)
    theirs = TorchvisionAnchors(tuple(map(tuple, sizes)), tuple(map(tuple, per_level)))
    assert all(torch.equal(a, b) for a, b in zip(ours.cell_anchors, theirs.cell_anchors, strict=True))
    assert ours.num_anchors == theirs.num_anchors_per_location()
    (expected,) = theirs(ImageList(torch.zeros(1, 3, *image), [image]), [torch.zeros(1, 1, *size) for size in maps])
    laid = ours(maps, image)
    assert [len(level) for level in laid] == [h * w * a for (h, w), a in zip(maps, ours.num_anchors, strict=True)]
    assert torch.equal(torch.cat(laid), expected)


def test_a_model_in_half_precision_keeps_exact_anchors_and_nothing_in_its_state() -> None:
    anchors = AnchorGenerator(FPN).bfloat16()
    assert anchors.state_dict() == {}
    assert list(anchors.parameters()) == []
    assert all(torch.equal(a, b) for a, b in zip(anchors.cell_anchors, AnchorGenerator(FPN).cell_anchors, strict=True))
    assert anchors([(1, 1)] * 5, (64, 64))[4].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sizes": FPN, "num_levels": 4}, "5.*4 levels"),
        ({"sizes": FPN, "ratios": [[1.0]] * 3}, "5.*3 ratios"),
        ({"sizes": FPN, "strides": [4, 8]}, "5.*2 strides"),
        ({"sizes": [32, 64]}, "one list for each level"),
        ({"sizes": []}, "one list for each level"),
        ({"sizes": FPN, "ratios": []}, "ratios are empty"),
        ({"sizes": [[32, float("nan")]]}, "anchor sizes: nan must be above 0"),
        ({"sizes": [[1e300]]}, "anchor sizes: 1e\\+300 must be above 0 and at most 100000"),
        ({"sizes": [[32]], "ratios": (-1.0,)}, "anchor ratios: -1.0 must be above 0"),
        ({"sizes": FPN, "convention": "caffe"}, "caffe.*torchvision, paper"),
    ],
)
def test_what_does_not_fit_is_told_in_numbers(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        AnchorGenerator(**options)


def test_another_number_of_feature_maps_is_told() -> None:
    with pytest.raises(ConfigError, match=r"5.*2 feature maps"):
        AnchorGenerator(FPN)([(2, 2), (1, 1)], (64, 64))
