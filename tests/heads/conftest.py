"""A region classifier without features: it answers from the coordinates of a region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detkit.heads import RegionClassifier, RegionSettings

NOTHING, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


class Coordinates(nn.Module):
    """Stands for RoI pooling: a region's features are its coordinates."""

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        return torch.cat(boxes) / 100


class Predictor(nn.Module):
    """Random linear scores and deltas of a region's coordinates, for K classes and background."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score, self.delta = nn.Linear(4, classes + 1), nn.Linear(4, (classes + 1) * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x), self.delta(x).unflatten(1, (-1, 4))


def classifier(predictor: nn.Module | None = None, **settings: Any) -> RegionClassifier:
    return RegionClassifier(Coordinates(), nn.Identity(), predictor or Predictor(3), RegionSettings(**settings))


def some_boxes(count: int, side: float = 200.0) -> Tensor:
    corner = torch.rand(count, 2) * side * 0.7
    return torch.cat((corner, corner + 20 + torch.rand(count, 2) * side * 0.3), dim=1)


def usable(*proposals: Tensor) -> list[Tensor]:
    return [torch.ones(len(p), dtype=torch.bool) for p in proposals]
