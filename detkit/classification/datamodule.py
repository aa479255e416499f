"""What the data sets for classification share: examples become samples, and splits are told in a line each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from detkit.data.dataset import image_to_tensor
from detkit.data.module import STAGES, DataModule
from detkit.data.transforms import AlbumentationsPipeline, HorizontalFlip, make_transform
from detkit.errors import ConfigError, DataError


class Examples(ABC):
    """The images of a split with one class each.

    Attributes:
        labels: int64 (N,), 1..K.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3), RGB.

        Raises:
            DataError: it cannot be read.
        """

    @abstractmethod
    def image_id(self, index: int) -> str:
        """What the image is called in messages."""


class Part(Examples):
    """Some of other examples.

    Args:
        whole: the others.
        rows: (n,) int64, which of them.
    """

    def __init__(self, whole: Examples, rows: np.ndarray) -> None:
        self.whole, self.rows, self.labels = whole, rows, whole.labels[rows]

    def image(self, index: int) -> np.ndarray:
        """See `Examples`."""
        return self.whole.image(int(self.rows[index]))

    def image_id(self, index: int) -> str:
        """See `Examples`."""
        return self.whole.image_id(int(self.rows[index]))


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Part, Part]:
    """Those to train on and those held out to validate on: that share of each class, drawn by the seed.

    A class of two images or more keeps one at least on each side.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(examples), bool)
    for label in np.unique(examples.labels):
        rows = generator.permutation(np.flatnonzero(examples.labels == label))
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        held[rows[:count]] = True
    return Part(examples, np.flatnonzero(~held)), Part(examples, np.flatnonzero(held))


class ClassificationDataset(Dataset):
    """Samples {"image": uint8 (3, H, W), "label": int 1..K, "image_id"} of examples.

    Args:
        examples: the split.
        transform: augmentation, called with (item, seed); None for none.
        seed: for samples that are asked for by a plain index.
    """

    def __init__(
        self, examples: Examples, transform: HorizontalFlip | AlbumentationsPipeline | None = None, seed: int = 0
    ) -> None:
        self.examples, self.transform, self.seed = examples, transform, seed

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """A sample; `key` is an index or, from the TrainSampler, (index, seed)."""
        index, seed = key if isinstance(key, tuple) else (key, self.seed + int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        image = self.examples.image(index)
        if self.transform is not None:
            image = self.transform({"image": image, "boxes": np.zeros((0, 4), np.float32)}, seed)["image"]
        label = int(self.examples.labels[index])
        return {"image": image_to_tensor(image), "label": label, "image_id": self.examples.image_id(index)}


class ClassificationDataModule(DataModule):
    """Base of the data sets for `ImageClassifier`. A subclass says how a split is read (`read`) and sets the classes.

    Args:
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation and test; None takes batch_size.
        num_workers: processes that read images; None takes one less than the cores, at most 4; 0 reads in
            the main process.
        transforms: training augmentation: albumentations transforms, each as `class_path` and `init_args`; None is a
            horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; None takes seed_everything's.
        class_names: the classes in the order of the labels; None finds them in the data.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        transforms: list[dict[str, Any]] | None = None,
        seed: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, transforms, seed, class_names)
        self._examples: dict[str, Examples | None] = {}
        self._datasets: dict[str, ClassificationDataset] = {}
        self._printed = False

    def read(self, split: str) -> Examples | None:
        """The examples of "train", "val" or "test"; None where there is no such split."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def examples(self, split: str) -> Examples | None:
        """The examples of a split, read at most once.

        Raises:
            DataError: the split cannot be read, or holds nothing.
        """
        if split not in self._examples:
            found = self.read(split)
            if found is not None and not len(found):
                raise DataError(f"{type(self).__name__}: the {split} set has no images")
            self._examples[split] = found
        return self._examples[split]

    def dataset(self, split: str) -> ClassificationDataset | None:
        """The samples of a split; those of "train" are augmented."""
        if split not in self._datasets:
            examples = self.examples(split)
            if examples is None:
                return None
            transform = make_transform(self.transforms) if split == "train" else None
            if transform is not None and hasattr(transform, "build"):
                transform.build()  # a wrong transform is told now, not from within a worker
            self._datasets[split] = ClassificationDataset(examples, transform, self.seed)
        return self._datasets[split]

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; tells the splits once, on rank 0 of a run.

        Raises:
            ConfigError: the model is a detector.
        """
        if self.trainer is not None and hasattr(self.trainer.lightning_module, "detect"):
            raise ConfigError(
                f"{type(self).__name__} has a class for each image and no boxes: it is for --model ImageClassifier"
            )
        splits = STAGES[stage] if stage is not None else ("train", "val", "test")
        self._datasets.clear()
        for split in splits:
            self.dataset(split)
        if self.trainer is not None and self.trainer.is_global_zero and not self._printed:
            self._printed = True
            print("\n".join(self.summary(splits)), flush=True)

    def summary(self, splits: Sequence[str] = ("train", "val", "test")) -> list[str]:
        """One line for each split, and one for each class without a training image."""
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


def collate_labels(batch: list[dict[str, Any]]) -> torch.Tensor:
    """The classes of a batch of samples as a network counts them: int64 (N,), 0..K-1."""
    return torch.tensor([sample["label"] for sample in batch]) - 1
