"""A torch data set over Annotations: reads, augments and hands out samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkit.data.annotations import PER_BOX, Annotations
from detkit.data.mosaic import Mosaic
from detkit.data.transforms import Item, Transform, augment
from detkit.errors import DataError
from detkit.types import Sample

#: image_id -> its boxes (P, 4), for example a `ProposalStore`.
Proposals = Mapping[str | int, Any]


def image_to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) to a contiguous uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@dataclass(eq=False, repr=False)
class DetectionDataset(Dataset):
    """Samples of one split.

    Args:
        annotations: the split.
        transform: augmentation, called with (item, seed); None for none.
        proposals: image_id -> (P, 4) boxes; each sample then has "proposals", which follow every transform.
        seed: for samples that are asked for by a plain index.
        mosaic: joins images before they are augmented; None: each image stays alone.
    """

    annotations: Annotations
    transform: Transform | None = None
    proposals: Proposals | None = None
    seed: int = 0
    mosaic: Mosaic | None = None

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """A sample; `key` is an index or, from the TrainSampler, (index, seed).

        Raises:
            DataError: the image cannot be read.
            ConfigError: it cannot be augmented.
        """
        index, seed = key if isinstance(key, tuple) else (key, self.seed + int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        item = self._load(index) if self.mosaic is None else self.mosaic(self._load, index, len(self), seed)
        item = augment(self.transform, item, seed, self.annotations.path(index))
        sample: Any = {
            "image": image_to_tensor(item["image"]),
            "boxes": torch.as_tensor(item["boxes"], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.as_tensor(item["labels"], dtype=torch.int64),
            "difficult": torch.as_tensor(item["difficult"], dtype=torch.bool),
            "crowd": torch.as_tensor(item["crowd"], dtype=torch.bool),
            "area": torch.as_tensor(item["area"], dtype=torch.float32),
            **self.names(index),
        }
        if "proposals" in item:
            sample["proposals"] = torch.as_tensor(item["proposals"], dtype=torch.float32).reshape(-1, 4)
        return sample

    def names(self, index: int) -> dict[str, Any]:
        """image_id, file and path of an image, which is not read for it."""
        annotations = self.annotations
        file = str(annotations.files[index]).replace(os.sep, "/")
        return {"image_id": annotations.image_id(index), "file": file, "path": annotations.path(index)}

    def _load(self, index: int) -> Item:
        annotations = self.annotations
        size = (int(annotations.widths[index]), int(annotations.heights[index]))
        path = annotations.path(index)
        item: Item = {"image": annotations.image(index), **annotations.fields(index)}
        if self.proposals is not None:
            item["proposals"] = _proposals(self.proposals, annotations.image_id(index))
        height, width = item["image"].shape[:2]
        if (width, height) != size:
            warnings.warn(
                f"{path}: image is {width} x {height}, its annotation says {size[0]} x {size[1]}; "
                "boxes are taken as pixels of the image",
                stacklevel=2,
            )
            _clip(item, width, height)
        return item


class UnreadableAsSamples(Dataset):
    """A data set in which an image that cannot be read is a sample of its names and an ``error``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """A sample of the data set, or one without ``image`` that says in ``error`` why it cannot be read."""
        try:
            return self.dataset[index]
        except DataError as error:
            sample: Sample = self.dataset.names(index)
            return sample | {"error": str(error)}


def _proposals(proposals: Proposals, image_id: str | int) -> np.ndarray:
    """A copy of an image's proposals, (P, 4) float32."""
    try:
        return np.array(proposals[image_id], np.float32).reshape(-1, 4)
    except KeyError:
        raise DataError(
            f"image {image_id!r} has no proposals: they are of another data set or split; compute its own with "
            "`detkit propose`"
        ) from None


def _clip(item: Item, width: int, height: int) -> None:
    """Keep what of the boxes lies within the image."""
    limit = np.array([width, height] * 2, np.float32)
    if "proposals" in item:
        proposals = np.clip(item["proposals"], 0, limit)
        item["proposals"] = proposals[(proposals[:, 2:] > proposals[:, :2]).all(1)]
    boxes = item["boxes"] = np.clip(item["boxes"], 0, limit)
    solid = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    item |= {name: item[name][solid] for name in PER_BOX}
