"""Sampling: the few boxes of an image that a training step looks at."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """A sample of fixed size n, foreground first, then background, then empty places.

    index: int64 (n,), rows of what was sampled; in empty places any row, possibly twice.
    positive: bool (n,), foreground.
    valid: bool (n,), False for the empty places at the end.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor


def sample(
    labels: Tensor, batch_size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> Samples:
    """Draws n = min(batch_size, N) of N boxes at random, without replacement.

    labels: int64 (N,), above 0 foreground, 0 background, -1 never drawn. At most
    int(batch_size * positive_fraction) are foreground; background fills what is left
    (anchor_target_layer.py and proposal_target_layer.py, papers.md 2.3). Where there is too little
    of it the rest is marked not valid, so that the size never depends on the data and the
    device is never waited for.

    generator: a source of randomness on the device of `labels`; None takes torch's own.
    """
    total = labels.shape[0]
    size = min(batch_size, total)
    most_positive = min(int(batch_size * positive_fraction), size)
    key = torch.rand(total, generator=generator, device=labels.device)
    # Those that must not be drawn get a key below every other: they come last, and can be told.
    foreground_key, foreground = torch.where(labels > 0, key, -1.0).topk(most_positive)
    background_key, background = torch.where(labels == 0, key, -1.0).topk(size)

    place = torch.arange(size, device=labels.device)
    positives = (foreground_key >= 0).sum()
    positive = place < positives
    from_background = (place - positives).clamp(min=0)
    valid = positive | (background_key[from_background] >= 0)
    # Positives are at most `most_positive`, so the padded places are never chosen.
    foreground = torch.cat((foreground, foreground.new_zeros(size - most_positive)))
    index = torch.where(positive, foreground, background[from_background])
    return Samples(index, positive, valid)
