"""What every data module of the project shares: batches, workers, seeds, classes and loaders."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from detkit.data.annotations import check_class_names
from detkit.data.loaders import default_workers, make_eval_loader, make_train_loader, resume_position
from detkit.data.sampler import TrainSampler
from detkit.errors import ConfigError, DataError

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class DataModule(L.LightningDataModule):
    """Base of the detection data sets and of those for classification, which say what a split holds (`dataset`).

    Args:
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation, test and prediction; None takes batch_size.
        num_workers: processes that read images; None takes one less than the cores, at most 4; 0 reads in
            the main process.
        transforms: training augmentation: albumentations transforms, each as `class_path` and
            `init_args`; None is a horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; any integer from 0; None takes seed_everything's.
        class_names: the classes in the order of the labels 1..K; None finds them in the data.

    Attributes:
        class_names: list[str], background not among them. Known after `__init__`.
        category_ids: the data set's own ids, in the order of class_names.
    """

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int | None,
        transforms: list[dict[str, Any]] | None,
        seed: int | None,
        class_names: list[str] | None,
    ) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        num_workers = default_workers() if num_workers is None else num_workers
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.transforms, self.seed = transforms, seed
        self.class_names: list[str] = [] if class_names is None else check_class_names(class_names)
        self.category_ids: list[int] = list(range(1, len(self.class_names) + 1))

    @property
    def num_classes(self) -> int:
        """Number of classes without background."""
        return len(self.class_names)

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where there is no other."""
        return "test"

    @classmethod
    def split_option(cls, split: str) -> str:
        """The option that names a split, and what is to follow it; "" where splits are not named."""
        options = inspect.signature(cls).parameters
        if split in options:
            return f"--data.{split} SET"
        return f"--data.{split}_annotations FILE" if f"{split}_annotations" in options else ""

    def _set_classes(self, names: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.class_names = check_class_names(names)
        self.category_ids = list(category_ids) if category_ids is not None else list(range(1, len(names) + 1))

    def dataset(self, split: str) -> Any:
        """The samples of "train", "val" or "test"; None where there is no such split."""
        raise NotImplementedError(f"{type(self).__name__} must implement dataset")

    def _wide(self, dataset: Any) -> np.ndarray | None:
        """Which training images are wider than tall, where batches are grouped by that."""
        return None

    def train_dataloader(self) -> DataLoader:
        """Augmented samples in seeded random order."""
        dataset = self._required("train")
        sampler = TrainSampler(len(dataset), self.seed, self.batch_size, self._wide(dataset))
        if self.trainer is not None:
            epoch, batches = resume_position(self.trainer)
            sampler.set_epoch(epoch)
            sampler.skip = (epoch, batches * self.batch_size)
        return make_train_loader(dataset, sampler, self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Validation samples in order; an empty list where there is no validation set."""
        dataset = self.dataset("val")
        return [] if dataset is None else make_eval_loader(dataset, self.eval_batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader:
        """Test samples in order."""
        return make_eval_loader(self._required("test"), self.eval_batch_size, self.num_workers)

    def predict_dataloader(self) -> DataLoader:
        """The images to predict on: those of the test set."""
        return self.test_dataloader()

    def _required(self, split: str) -> Any:
        dataset = self.dataset(split)
        if dataset is None:
            option = self.split_option(split)
            hint = f"; name one, on the command line by {option}" if option else ""
            raise DataError(f"{type(self).__name__}: there is no {split} set{hint}")
        return dataset
