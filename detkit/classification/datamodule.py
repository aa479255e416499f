"""What the data sets for classification share: examples become samples, and a line sums up each split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detkit.data.datamodule import SPLITS, DataModule
from detkit.data.dataset import image_to_tensor
from detkit.data.transforms import Transform, augment
from detkit.errors import ConfigError, DataError


class Examples(ABC):
    """The images of a split with one class each."""

    labels: np.ndarray
    """int64 (N,), 1..K."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB; DataError if it cannot be read."""

    @abstractmethod
    def image_id(self, index: int) -> str:
        """What the image is called in messages."""


class LabelledImage(TypedDict):
    """A sample for `ImageClassifier`."""

    #: uint8 (3, H, W), RGB.
    image: Tensor
    #: From 1 to K.
    label: int
    #: What the image is called in messages.
    image_id: str


@dataclass(eq=False, repr=False)
class ClassificationDataset(Dataset):
    """Samples of examples, augmented by `transform`; `seed` is for samples that are asked for by a plain index."""

    examples: Examples
    transform: Transform | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: int | tuple[int, int]) -> LabelledImage:
        """A sample; `key` is an index or, from the TrainSampler, (index, seed)."""
        index, seed = key if isinstance(key, tuple) else (key, self.seed + int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = self.examples.image(index)
        item = {"image": image, "boxes": np.zeros((0, 4), np.float32)}
        image = augment(self.transform, item, seed, self.examples.image_id(index))["image"]
        label = int(self.examples.labels[index])
        return {"image": image_to_tensor(image), "label": label, "image_id": self.examples.image_id(index)}


class ClassificationDataModule(DataModule):
    """Base of the data sets for `ImageClassifier`. A subclass reads a split (`read`) and sets the classes.

    Args:
        batch_size: training images per step and device; at least 1.
        shared: see DataModule.
    """

    def __init__(self, batch_size: int = 64, **shared: Any) -> None:
        super().__init__(batch_size=batch_size, **shared)

    def examples(self, split: str) -> Examples | None:
        """The examples of a split, read at most once; None where there is no such split, DataError for an empty one."""
        examples = self.content(split)
        if examples is not None and not len(examples):
            raise DataError(f"{type(self).__name__}: the {split} set has no images")
        return examples

    def make_dataset(self, split: str, content: Examples, transform: Transform | None) -> ClassificationDataset:
        """Samples of the split's examples."""
        return ClassificationDataset(self.examples(split), transform, self.seed)

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; ConfigError if the model is a detector."""
        from detkit.detectors.base import Detector

        if self.trainer is not None and isinstance(self.trainer.lightning_module, Detector):
            raise ConfigError(
                f"{type(self).__name__} has a class for each image and no boxes: it is for --model ImageClassifier"
            )
        super().setup(stage)

    def print_summary(self, splits: Sequence[str]) -> None:
        """Print the lines of the summary."""
        print("\n".join(self.summary(splits)), flush=True)

    def summary(self, splits: Sequence[str] = SPLITS) -> list[str]:
        """One line for each split, and one for the classes without a training image."""
        lines = []
        for split in splits:
            examples = self.examples(split)
            if examples is None:
                continue
            counts = np.bincount(examples.labels, minlength=self.num_classes + 1)[1:]
            span = f"{counts.min():,} to {counts.max():,}" if counts.min() < counts.max() else f"{counts.max():,}"
            lines.append(f"{split}: {len(examples):,} images of {self.num_classes} classes, {span} each")
            missing = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
            if split == "train" and missing:
                lines.append(f"warning: train: no image of {', '.join(missing)}, so it cannot be learnt")
        return lines


def collate_labels(batch: Sequence[LabelledImage]) -> Tensor:
    """The classes of a batch of samples as a network counts them: int64 (N,), 0..K-1."""
    return torch.tensor([sample["label"] for sample in batch]) - 1
