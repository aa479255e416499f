"""A folder of classes: each has a folder of its own with its images."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np

from detkit.classification.datamodule import ClassificationDataModule, Examples
from detkit.data.image_io import read_image
from detkit.data.voc_files import IMAGE_SUFFIXES, is_image_name
from detkit.errors import ConfigError, DataError


class FolderExamples(Examples):
    """The images below a folder; the folders in it are the classes, as torchvision's ImageFolder reads them.

    Args:
        root: the folder.
        class_names: the classes in the order of the labels; None takes the folders' names, sorted.

    Attributes:
        class_names: of the labels 1..K.

    Raises:
        DataError: no such folder, no class in it, a class without images, or one that is not in class_names.
    """

    def __init__(self, root: str, class_names: list[str] | None = None) -> None:
        from torchvision.datasets import ImageFolder

        try:
            # A class without images is ours to judge: of a training set it cannot be learnt.
            folder = ImageFolder(root, is_valid_file=is_image_name, allow_empty=True)
        except FileNotFoundError:
            reason = "no class folders in it" if os.path.isdir(root) else "no such folder"
            raise DataError(
                f"{root}: {reason}; each class needs a folder with its images, such as {os.path.join(root, 'cat')}"
            ) from None
        except OSError as error:
            raise DataError(f"{root}: cannot be read ({error})") from None
        self.class_names = folder.classes if class_names is None else class_names
        unknown = [name for name in folder.classes if name not in self.class_names]
        if unknown:
            raise DataError(f"{root}: {', '.join(unknown)} is no class; the classes are {', '.join(self.class_names)}")
        if not folder.samples:
            raise DataError(f"{root}: no image in its folders ({', '.join(IMAGE_SUFFIXES)})")
        label = np.array([self.class_names.index(name) + 1 for name in folder.classes], np.int64)
        files, classes = zip(*folder.samples, strict=True)
        # An array: a list is copied into every worker piece by piece, as its elements are counted.
        self.root = root
        self.files = np.array([os.path.relpath(file, root) for file in files])
        self.labels = label[np.array(classes)]

    def image(self, index: int) -> np.ndarray:
        return read_image(os.path.join(self.root, self.image_id(index)))

    def image_id(self, index: int) -> str:
        """The file below the folder."""
        return str(self.files[index])

    def part(self, rows: np.ndarray) -> FolderExamples:
        """Only the examples that ``rows``, (N,) bool, marks."""
        result = copy.copy(self)
        result.files, result.labels = self.files[rows], self.labels[rows]
        return result


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which examples of the classes `labels` (N,) to validate on, the share `fraction` (0..1) of each: (N,) bool.

    Of a class of two images or more, at least one is held out and at least one is not.
    """
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        held[rows[:count]] = True
    return held


class ClassFolder(ClassificationDataModule):
    """A folder of classes, such as train/cat/*.jpg, train/dog/*.jpg, val/cat/*.jpg, val/dog/*.jpg.

    Args:
        path: the folder.
        train: folder in it to train on; "." where the classes' folders lie in path itself.
        val: folder in it to validate on; None for none.
        test: folder in it to test on; None takes what is validated on.
        val_fraction: share of each class's training images that is held out to validate on, where val is None.
        shared: see ClassificationDataModule; what is held out does not depend on `seed`. Without class_names the
            classes are the training folders' names, sorted.
    """

    def __init__(
        self,
        path: str,
        train: str = "train",
        val: str | None = "val",
        test: str | None = None,
        val_fraction: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"val_fraction must be within 0 and below 1, got {val_fraction}")
        if val is not None and val_fraction:
            raise ConfigError(f"val_fraction {val_fraction} goes with val: null; here val is {val!r}")
        self.path = str(path)
        self.sources = {"train": train, "val": val, "test": test}
        self.val_fraction = val_fraction
        if not self.class_names:
            self._set_classes(self._folder(train).class_names)

    def read(self, split: str) -> Examples | None:
        """Read a split from disk."""
        if self.val_fraction and split in ("train", "val"):
            examples = self._folder(self.sources["train"])
            # What is held out must be the same in a later test, whatever the seed of the shuffling.
            return examples.part(hold_out(examples.labels, self.val_fraction, seed=0) == (split == "val"))
        name = self.sources[split]
        return None if name is None else self._folder(name)

    def _folder(self, name: str | None) -> FolderExamples:
        return FolderExamples(os.path.normpath(os.path.join(self.path, name or ".")), self.class_names or None)
