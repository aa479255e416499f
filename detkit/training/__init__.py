"""Training's parts that every generation shares: matching, sampling and losses.

Nothing here asks the device for a value, so a training step never waits for it.
"""

from __future__ import annotations

from .losses import binary_cross_entropy, box_regression_loss, cross_entropy
from .matching import Matches, ignore_in_regions, match
from .sampling import Samples, sample

__all__ = [
    "Matches",
    "Samples",
    "binary_cross_entropy",
    "box_regression_loss",
    "cross_entropy",
    "ignore_in_regions",
    "match",
    "sample",
]
