"""RoI heads without features: they answer from the coordinates of a region."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from detkit.heads import DetectionSettings, RoIHeads, RoISettings
from detkit.proposals import Proposals
from detkit.types import Targets

NOTHING, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


class Coordinates(nn.Module):
    """Stands for RoI pooling: a region's features are its coordinates."""

    def forward(self, features: list[Tensor], rois: Tensor) -> Tensor:
        return rois[:, 1:] / 100


class Predictor(nn.Module):
    """Random linear scores and deltas of a region's coordinates, for K classes and background."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score, self.delta = nn.Linear(4, classes + 1), nn.Linear(4, (classes + 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x), self.delta(x).unflatten(1, (-1, 4))


def classifier(predictor: nn.Module | None = None, **settings: Any) -> RoIHeads:
    """RoI heads with these settings, of `RoISettings` or `DetectionSettings`."""
    names = {each.name for each in fields(DetectionSettings)}
    detection = DetectionSettings(**{name: value for name, value in settings.items() if name in names})
    roi = RoISettings(**{name: value for name, value in settings.items() if name not in names})
    return RoIHeads(Coordinates(), nn.Identity(), predictor or Predictor(3), roi, detection)


def losses_of(
    heads: RoIHeads,
    proposals: list[Tensor],
    boxes: list[Tensor],
    labels: list[Tensor],
    ignore_boxes: list[Tensor] | None = None,
    valid: list[Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and sampler's statistics of images without features; padding has a score of -1."""
    valid = valid or [torch.ones(len(p), dtype=torch.bool) for p in proposals]
    scored = [Proposals(p, torch.where(v, 1.0, -1.0)) for p, v in zip(proposals, valid, strict=True)]
    return heads.losses([], scored, Targets(boxes, labels, ignore_boxes or [NOTHING] * len(boxes)))


def some_boxes(count: int, side: float = 200.0) -> Tensor:
    corner = torch.rand(count, 2) * side * 0.7
    return torch.cat((corner, corner + 20 + torch.rand(count, 2) * side * 0.3), dim=1)
