"""CIFAR-10 (Krizhevsky 2009), 60,000 images of 32 x 32 pixels, read by torchvision.

The files are pickles, and a pickle may run any code: torchvision compares each with its published MD5 checksum before
it is unpickled, and an altered file is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from detkit.classification.datamodule import ClassificationDataModule, Examples
from detkit.errors import ConfigError, DataError
from detkit.settings import check_range

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"


@dataclass(frozen=True, eq=False, repr=False)
class ArrayExamples(Examples):
    """Images held in memory, uint8 (N, H, W, 3), called `name`/number, counted from `first`; labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray
    name: str
    first: int = 0

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def image_id(self, index: int) -> str:
        """Such as train/00042."""
        return f"{self.name}/{self.first + index:05d}"


class CIFAR10(ClassificationDataModule):
    """CIFAR-10's python version: 50,000 images to train and validate on, 10,000 to test on.

    Args:
        path: the folder cifar-10-batches-py, unpacked from cifar-10-python.tar.gz, or the one around it.
        val_size: how many of the training images, the last ones, are validated on instead; 0 for none.
        batch_size: training images per step and device; at least 1.
        num_workers: processes that prepare images; they are in memory, so the main process does it best.
        class_names: the ten classes, in their order; for the checkpoint's sake, not to be chosen.
        shared: see ClassificationDataModule.

    Raises:
        DataError: a file is missing, or has been altered.
    """

    def __init__(
        self,
        path: str = "data/cifar-10-batches-py",
        val_size: int = 5000,
        batch_size: int = 128,
        num_workers: int | None = 0,
        class_names: list[str] | None = None,
        **shared: Any,
    ) -> None:
        names = list(CIFAR10_CLASSES)
        if class_names not in (None, names):
            raise ConfigError(f"CIFAR-10 has the classes {', '.join(names)}, in this order, not {class_names}")
        super().__init__(batch_size=batch_size, num_workers=num_workers, class_names=names, **shared)
        check_range("val_size", val_size, 0)
        self.val_size = val_size
        inner = os.path.join(str(path), FOLDER)
        self.path = inner if os.path.isdir(inner) else str(path)
        _check_files(self.path)

    def read(self, split: str) -> Examples | None:
        """Read a split's files."""
        if split == "test":
            return ArrayExamples(*_read(self.path, train=False), name="test")
        images, labels = self._training
        kept = len(labels) - self.val_size
        if kept < 1:
            raise ConfigError(f"val_size {self.val_size} leaves none of the {len(labels)} training images")
        if split == "train":
            return ArrayExamples(images[:kept], labels[:kept], name="train")
        return ArrayExamples(images[kept:], labels[kept:], name="train", first=kept) if self.val_size else None

    @cached_property
    def _training(self) -> tuple[np.ndarray, np.ndarray]:
        return _read(self.path, train=True)


def _check_files(path: str) -> None:
    """Compare each file of the folder with its published checksum; DataError for those missing or different."""
    from torchvision.datasets import CIFAR10 as Files
    from torchvision.datasets.utils import check_integrity

    hint = f"unpack cifar-10-python.tar.gz again and give its folder {FOLDER}"
    if os.path.basename(os.path.abspath(path)) != FOLDER:
        raise DataError(f"{path}: is not the folder {FOLDER}, nor the one around it; {hint}")
    checksums = dict([*Files.train_list, *Files.test_list])
    checksums[Files.meta["filename"]] = Files.meta["md5"]
    missing = [name for name in checksums if not os.path.isfile(os.path.join(path, name))]
    if missing:
        raise DataError(f"{path}: {', '.join(missing)} not there; {hint}")
    altered = [name for name, md5 in checksums.items() if not check_integrity(os.path.join(path, name), md5)]
    if altered:
        raise DataError(f"{path}: {', '.join(altered)} altered or cut short (its MD5 checksum differs); {hint}")


def _read(path: str, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,), 1..10."""
    from torchvision.datasets import CIFAR10 as Files

    files = Files(os.path.dirname(os.path.abspath(path)), train=train)
    return np.ascontiguousarray(files.data), np.array(files.targets, np.int64) + 1
