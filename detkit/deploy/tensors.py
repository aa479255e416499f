"""Exported detectors on samples of tensors, as detkit's other parts have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from detkit.data.image_io import as_image
from detkit.detections import Selection
from detkit.detectors.tiles import TileSettings, detect_by_tiles
from detkit.types import Batch, Detections

#: `ExportedModel.detect`.
Detect = Callable[[np.ndarray, np.ndarray | None], list[Detections]]


def detect_samples(detect: Detect, batch: Batch) -> list[Detections]:
    """Detections, as tensors, of each sample's ``image``, one at a time; of Fast R-CNN from its ``proposals``."""
    found = []
    for sample in batch:
        image, boxes = np.ascontiguousarray(sample["image"].cpu().numpy()), sample.get("proposals")
        (each,) = detect(image[None], None if boxes is None else boxes.numpy())
        found.append(Detections({name: torch.from_numpy(values) for name, values in each.items()}))
    return found


def predict_by_torch(
    detect: Detect, class_names: Sequence[str], images: Sequence[Any], selection: Selection, tiles: TileSettings | None
) -> list[Detections]:
    """Detections, as tensors, of images that `as_image` takes, by tiles where there are any."""
    found = []
    for image in images:
        batch: Batch = [{"image": as_image(image)}]
        of_samples = partial(detect_samples, detect)
        (each,) = of_samples(batch) if tiles is None else detect_by_tiles(of_samples, batch, tiles)
        found.append(selection(each, class_names))
    return found
