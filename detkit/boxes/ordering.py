"""Best first, with equal scores in the order torchvision puts them in.

Networks with random or saturated weights give many boxes the very same score, and then the order decides
which of them stay among the best N. With torchvision's weights the same ones have to stay.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_first(scores: Tensor, candidates: int) -> Tensor:
    """The order (int64) of scores (N,) from best to worst.

    scores: of the boxes that suppression kept, in the order the boxes had before it.
    candidates: how many boxes there were before it. torchvision suppresses up to 1000 of them (25,000 on other
        devices than the CPU) in one go, after which equal scores are in their first order; of more it sorts what is
        left of the groups with torch's unstable sort, whose result depends on the machine.
    """
    at_once = 1_000 if scores.device.type == "cpu" else 25_000
    # A traced program has one order for every size.
    stable = torch.compiler.is_compiling() or candidates <= at_once
    return scores.sort(descending=True, stable=stable).indices
