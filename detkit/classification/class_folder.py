"""A folder of classes: each has a folder of its own with its images."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detkit.classification.datamodule import ClassificationDataModule, Examples
from detkit.data.image_io import read_image
from detkit.data.input_files import list_folder, short_repr, walk
from detkit.data.voc_files import IMAGE_SUFFIXES, is_image_name
from detkit.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False, repr=False)
class FolderExamples(Examples):
    """Images below the folder `root`: their files relative to it, (N,) str, and their labels, (N,) int64."""

    root: str
    files: np.ndarray  # a list would be copied into every worker piece by piece, as its elements are counted
    labels: np.ndarray

    def image(self, index: int) -> np.ndarray:
        return read_image(os.path.join(self.root, self.image_id(index)))

    def image_id(self, index: int) -> str:
        """The file below the folder."""
        return str(self.files[index])


def read_class_folder(root: str, class_names: list[str] | None = None) -> tuple[FolderExamples, list[str]]:
    """The images below a folder and their classes: the folders in it, as torchvision's ImageFolder reads them.

    Args:
        root: the folder.
        class_names: the classes in the order of the labels; None takes the folders' names, sorted.

    Raises:
        DataError: no such folder, no class in it, no images, or a class that is not in class_names.
    """
    there = os.path.isdir(root)
    folders = [name for name in list_folder(root) if os.path.isdir(os.path.join(root, name))] if there else []
    if not folders:
        reason = "no class folders in it" if there else "no such folder"
        raise DataError(
            f"{root}: {reason}; each class needs a folder with its images, such as {os.path.join(root, 'cat')}"
        )
    names = class_names or folders
    unknown = [name for name in folders if name not in names]
    if unknown:
        raise DataError(
            f"{root}: {', '.join(map(short_repr, unknown))} is no class; the classes are {', '.join(names)}"
        )
    found = {name: filter(is_image_name, walk(os.path.join(root, name))) for name in folders}
    images = {name: sorted(paths, key=os.path.split) for name, paths in found.items()}
    files = [os.path.relpath(file, root) for of_class in images.values() for file in of_class]
    if not files:
        raise DataError(f"{root}: no image in its folders ({', '.join(IMAGE_SUFFIXES)})")
    labels = np.repeat([names.index(name) + 1 for name in images], [len(of_class) for of_class in images.values()])
    return FolderExamples(root, np.array(files), labels.astype(np.int64)), names


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
            self._set_classes(self._folder(train)[1])

    def read(self, split: str) -> Examples | None:
        """Read a split from disk."""
        if self.val_fraction and split in ("train", "val"):
            examples, _ = self._folder(self.sources["train"])
            # What is held out must be the same in a later test, whatever the seed of the shuffling.
            rows = hold_out(examples.labels, self.val_fraction, seed=0) == (split == "val")
            return replace(examples, files=examples.files[rows], labels=examples.labels[rows])
        name = self.sources[split]
        return None if name is None else self._folder(name)[0]

    def _folder(self, name: str | None) -> tuple[FolderExamples, list[str]]:
        return read_class_folder(os.path.normpath(os.path.join(self.path, name or ".")), self.class_names)
