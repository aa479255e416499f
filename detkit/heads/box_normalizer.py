"""Regression targets of each class with mean 0 and deviation 1, by the training set's statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.training.box_statistics import BoxStatistics


class BoxNormalizer(nn.Module):
    """Normalises deltas class by class (Girshick 2015, section 2.3), and restores them.

    The statistics are buffers: they stand beside the weights in a checkpoint and are never multiplied into them. Until
    they are measured nothing is changed.

    Args:
        num_classes: K, without background.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes + 1, 4))
        self.register_buffer("std", torch.ones(num_classes + 1, 4))
        self.register_buffer("count", torch.zeros(num_classes + 1, dtype=torch.int64))

    @property
    def known(self) -> bool:
        """Whether statistics were measured or loaded."""
        return bool(self.count.any())

    def set(self, statistics: BoxStatistics) -> None:
        """Take the statistics of a training set."""
        for name, value in statistics._asdict().items():
            getattr(self, name).copy_(value)

    def normalize(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """What the network is to predict for deltas (R, 4) of classes (R,)."""
        return (deltas - self.mean[labels]) / self.std[labels]

    def restore(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """The deltas (R, 4) that predictions for classes (R,) mean."""
        return predicted * self.std[labels] + self.mean[labels]
