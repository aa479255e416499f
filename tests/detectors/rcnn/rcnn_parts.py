"""What the tests of R-CNN share: one so small that a fit takes a second, and proposals for drawn shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import detkit
from detkit.data import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.data.shapes_drawing import SHAPE_CLASSES
from detkit.detectors import ProposalSettings
from detkit.settings import construct

OPTIONS: dict[str, Any] = {
    "class_names": list(SHAPE_CLASSES),
    "backbone": "lenet5",
    "crop__size": 32,
    "crop__context": 4,
    "sampling__batch_size": 32,
    "proposals": ProposalSettings(max_boxes=(40, 25)),
    "optim__warmup_steps": 0,
    "optim__lr": 0.005,
    "feature_files__budget": 1.0,
}


def rcnn(**options: Any) -> detkit.RCNN:
    """The same options give the same weights."""
    torch.manual_seed(0)
    return construct(detkit.RCNN, OPTIONS | options)


def detecting(trained: str = "all", **options: Any) -> detkit.RCNN:
    """In eval mode, with numbers drawn for SVMs and regressors, of all classes or none."""
    model = rcnn(**options)
    heads = model.roi_heads
    torch.nn.init.normal_(heads.cls_score.weight, std=0.5)
    if trained == "all":
        heads.svms.weight.normal_()
        heads.box_regressors.weight.normal_(std=0.003)
        heads.svms.trained[:] = heads.box_regressors.trained[:] = True
    return model.eval()


def boxes_in(height: int, width: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Boxes (count, 4) anywhere in an image."""
    size = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    extent = (0.1 + 0.6 * torch.rand(count, 2, generator=generator)) * size
    return torch.cat((corner, torch.minimum(corner + extent, size)), dim=1)


def proposals_for(annotations: Annotations, near: int = 6, far: int = 12) -> dict[str | int, np.ndarray]:
    """Boxes by image: some near each object, in no order that tells, and some anywhere."""
    generator, found = torch.Generator().manual_seed(7), {}
    for i in range(len(annotations)):
        height, width = int(annotations.heights[i]), int(annotations.widths[i])
        truth = torch.from_numpy(annotations.fields(i)["boxes"]).repeat(near, 1)
        shifted = truth + 3 * torch.randn(truth.shape, generator=generator)
        limit = torch.tensor([width, height] * 2)
        every = torch.cat((shifted, boxes_in(height, width, far, generator))).clamp(min=torch.zeros(4), max=limit)
        every = every[(every[:, 2:] - every[:, :2] >= 2).all(1)]
        found[annotations.image_id(i)] = every[torch.randperm(len(every), generator=generator)].numpy()
    return found


def with_proposals(data: DetectionDataModule) -> DetectionDataModule:
    stores: Mapping[str, Any] = {s: proposals_for(data.annotations(s)) for s in ("train", "val", "test")}
    data.use_proposals(stores)
    return data
