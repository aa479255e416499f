"""A region proposal network on one map of stride 16, batches without pixels, and outputs to order."""

from __future__ import annotations

from typing import Any

import torch

from detkit.boxes import AnchorGenerator
from detkit.features import ImageBatch
from detkit.proposals import RegionProposalNetwork, RPNSettings
from detkit.proposals.region_proposal_network import RPNOutput

NOTHING = torch.zeros(0, 4)


def network(sizes: list[list[float]] | None = None, **settings: Any) -> RegionProposalNetwork:
    generator = AnchorGenerator(sizes or [[32.0, 64.0, 128.0]], [0.5, 1.0, 2.0], convention="paper", strides=[16])
    return RegionProposalNetwork(8, generator, RPNSettings(**settings))


def images(*sizes: tuple[int, int], scale: float = 1) -> ImageBatch:
    """A batch of images that were `scale` times smaller before."""
    tensor = torch.zeros(len(sizes), 3, *(max(s[i] for s in sizes) for i in (0, 1)))
    return ImageBatch(tensor, list(sizes), [(round(h / scale), round(w / scale)) for h, w in sizes])


def output_of(rpn: RegionProposalNetwork, batch: ImageBatch) -> RPNOutput:
    height, width = (s // 16 for s in batch.tensor.shape[-2:])
    return rpn([torch.randn(len(batch.sizes), 8, height, width)], batch)
