"""Training's parts that every generation shares: matching, sampling, losses, and what is measured before it.

Nothing in a training step asks the device for a value, so it never waits for it.
"""

from __future__ import annotations

from .batch_sampling import sample_batch
from .box_statistics import BoxStatistics, box_statistics
from .losses import binary_cross_entropy, box_regression_loss, cross_entropy
from .matching import Matches, ignore_in_regions, match
from .sampling import Samples, sample

__all__ = [
    "BoxStatistics",
    "Matches",
    "Samples",
    "binary_cross_entropy",
    "box_regression_loss",
    "box_statistics",
    "cross_entropy",
    "ignore_in_regions",
    "match",
    "sample",
    "sample_batch",
]
