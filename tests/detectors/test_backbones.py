"""Faster R-CNN on every kind of backbone: a training step and detections of a small image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .conftest import Small, sample


class TwoMaps(nn.Module):
    """A user's own backbone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strides, self.channels = [8, 16], [channels, channels]
        self.fine = nn.Conv2d(3, channels, 8, stride=8)
        self.coarse = nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


OWN = {"class_path": f"{__name__}.TwoMaps", "init_args": {"channels": 12}}


@pytest.mark.parametrize(
    ("backbone", "fpn"),
    [
        ("efficientnet_b0", True),
        ("regnet_y_400mf", True),
        ("convnext_tiny", True),
        ("swin_t", True),
        ("swin_t", False),
        ("timm/test_resnet", True),
        (OWN, True),
        (OWN, False),
    ],
)
def test_a_training_step_and_detections(small: Small, backbone: str | dict[str, Any], fpn: bool) -> None:
    if str(backbone).startswith("timm/"):
        pytest.importorskip("timm")
    sizes = [[16.0], [32.0]] if backbone is OWN and not fpn else None
    model = small(backbone=backbone, features__fpn=fpn, features__fpn_channels=16, anchors__sizes=sizes)
    batch = [sample(64, 80, [[5.0, 5, 40, 50]])]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model.train().losses(batch)
    sum(losses.values()).backward()
    learning = [p for p in model.backbone.body.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
    assert any(p.grad.any() for p in learning)
    optimizer.step()
    with torch.no_grad():
        (detections,) = model.eval().detect(batch)
    assert detections["boxes"].isfinite().all() and len(detections["scores"]) > 0


def test_lines_on_maps_whose_receptive_field_is_not_known(small: Small) -> None:
    pyramid = {"features__fpn": True, "features__fpn_channels": 8, "anchors__sizes": [[8.0], [16.0], [32.0]]}
    assert small(backbone=OWN, **pyramid).feature_lines() == [
        "map 0: stride 8 px, anchors 8 px",
        "map 1: stride 16 px, anchors 16 px",
        "map pool: stride 32 px, anchors 32 px",
    ]
