"""Matching, sampling and losses, which all generations share, and the statistics of regression targets.

Nothing in a training step reads a value from the device, so that it never waits for it.
"""

from detkit.training.box_statistics import BoxStatistics, box_statistics
from detkit.training.losses import binary_cross_entropy, box_regression_loss, cross_entropy
from detkit.training.sampling import Matches, Samples, ignore_background, match, sample, sample_batch

__all__ = [
    "BoxStatistics",
    "Matches",
    "Samples",
    "binary_cross_entropy",
    "box_regression_loss",
    "box_statistics",
    "cross_entropy",
    "ignore_background",
    "match",
    "sample",
    "sample_batch",
]
