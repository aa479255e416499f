"""What is told about maps and anchors when a fit begins."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from detkit.detectors import RCNN, FasterRCNN, FastRCNN
from detkit.detectors.field_lines import field_lines
from detkit.features.architectures import classification_network


def test_the_papers_numbers() -> None:
    with torch.device("meta"):
        detector = FasterRCNN(["cat"], backbone="vgg16", fpn=False, anchor_sizes=[[128, 256, 512]])
    assert field_lines(detector) == ["map 29: stride 16 px, receptive field 228 px, anchors 128, 256, 512 px"]


def test_a_pyramid_has_a_line_for_each_map() -> None:
    sizes = [[8.0, 11.5], [16.0, 23.0], [32.0, 45.0], [64.0, 90.0]]
    detector = FasterRCNN(["cat"], backbone="tiny", fpn_channels=8, anchor_sizes=sizes, rpn_convolutions=2)
    assert field_lines(detector) == [
        "map 1: stride 4 px, receptive field 39 px without the top-down path, anchors 8, 11.5 px",
        "map 2: stride 8 px, receptive field 87 px without the top-down path, anchors 16, 23 px",
        "map 3: stride 16 px, receptive field 183 px without the top-down path, anchors 32, 45 px",
        "map pool: stride 32 px, receptive field 247 px without the top-down path, anchors 64, 90 px",
    ]


def test_crops_have_a_line_only_where_their_size_does_not_suit(tmp_path: Path) -> None:
    torch.save(classification_network("lenet5").state_dict(), tmp_path / "lenet5.pth")
    options = {"class_names": ["cat"], "backbone": "lenet5", "weights": str(tmp_path / "lenet5.pth"), "context": 4}
    assert field_lines(RCNN(**options, crop_size=32)) == []
    (line,) = field_lines(RCNN(**options, crop_size=16))
    assert line.startswith("warning: crop_size 16 gives a map of 4 x 4 cells")


def test_without_anchors_or_maps() -> None:
    detector = FastRCNN(["cat"], backbone="tiny", fpn=False)
    assert field_lines(detector) == ["map 2: stride 8 px, receptive field 39 px"]
    assert field_lines(nn.Linear(2, 2)) == []
