"""The data modules: what every data set shares, and what those for detection add.

A data set of one's own is a subclass of `DetectionDataModule` with a constructor and `read`; see docs/data.md.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations, check_class_names
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import TrainLoader, default_workers, loader_options, make_eval_loader, samples_done
from detkit.data.sampler import TrainSampler
from detkit.data.summary import DataSummary
from detkit.data.transforms import Transform, make_transform
from detkit.errors import ConfigError, DataError
from detkit.proposals.store import ProposalStore

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
SPLITS = ("train", "val", "test")


class DataModule(L.LightningDataModule):
    """Splits that are read once, their classes, and their loaders.

    A subclass reads a split (`read`), makes samples of what was read (`make_dataset`) and prints a summary
    (`print_summary`).

    Args:
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation, test and prediction; None takes batch_size.
        num_workers: processes that read images; None takes one less than the cores, at most 4; 0 reads in
            the main process.
        transforms: training augmentation: albumentations transforms, each as `class_path` and
            `init_args`; None is a horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; any integer from 0; None takes seed_everything's.
        class_names: the classes, without background, in the order of the labels 1..K; None takes those of the data
            set. The attribute of this name is known after `__init__`.

    Attributes:
        category_ids: the data set's own ids, in the order of class_names.
    """

    def __init__(
        self,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        transforms: list[dict] | None = None,  # with dict[str, Any] jsonargparse would call what is nested in it
        seed: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.transforms = transforms
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        self.class_names: list[str] = [] if class_names is None else check_class_names(class_names)
        self.category_ids: list[int] = list(range(1, len(self.class_names) + 1))
        self._content: dict[str, Any] = {}
        self._datasets: dict[str, Any] = {}
        self._printed = False

    def read(self, split: str) -> Any:
        """Read "train", "val" or "test" from disk; None where the data set has no such split.

        Called at most once a split, and not for "test" where `test_split` is "val".
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def make_dataset(self, split: str, content: Any, transform: Transform | None) -> Dataset:
        """The samples of what `read` gave for a split, augmented by `transform`."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_dataset")

    def print_summary(self, splits: Sequence[str]) -> None:
        """Print what the splits hold."""
        raise NotImplementedError(f"{type(self).__name__} must implement print_summary")

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where no test set is named."""
        return "test"

    def _wide(self, dataset: Any) -> np.ndarray | None:
        """Which training images are wider than tall, where batches are grouped by that."""
        return None

    def _set_classes(self, names: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.class_names = check_class_names(names)
        self.category_ids = list(category_ids) if category_ids is not None else list(range(1, len(names) + 1))

    @property
    def num_classes(self) -> int:
        """Number of classes without background."""
        return len(self.class_names)

    def content(self, split: str) -> Any:
        """What `read` gives for a split, read at most once."""
        if split not in self._content:
            if split == "test" and self.test_split == "val":
                self._content[split] = self.content("val")
                if self._content[split] is not None:
                    rank_zero_info("no test set is named: testing on the validation set")
            else:
                self._content[split] = self.read(split)
        return self._content[split]

    def dataset(self, split: str) -> Any:
        """The samples of "train" (augmented), "val" or "test"; None where there is no such split."""
        if split not in self._datasets:
            content = self.content(split)
            if content is None:
                return None
            transform = make_transform(self.transforms) if split == "train" else None
            self._datasets[split] = self.make_dataset(split, content, transform)
        return self._datasets[split]

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; prints the summary once, on rank 0 of a run.

        Raises:
            DataError: there is nothing to test on.
        """
        splits = STAGES[stage] if stage is not None else SPLITS
        self._datasets.clear()
        for split in splits:
            self.dataset(split)
        if stage == "test":  # before a summary of nothing is printed
            self._required("test")
        if self.trainer is not None and self.trainer.is_global_zero and not self._printed and stage != "predict":
            self._printed = True
            self.print_summary(splits)

    def train_dataloader(self) -> DataLoader:
        """Augmented samples in seeded random order."""
        dataset = self._required("train")
        sampler = TrainSampler(
            len(dataset),
            seed=self.seed,
            batch_size=self.batch_size,
            wide=self._wide(dataset),
            samples_done=samples_done(self.trainer, self.batch_size),
        )
        options = loader_options(self.num_workers)
        return TrainLoader(dataset, batch_size=self.batch_size, sampler=sampler, **options)

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
            parameters = inspect.signature(type(self)).parameters
            options = {split: f"{split} SET", f"{split}_annotations": f"{split}_annotations FILE"}
            hints = [
                f"; name one, on the command line by --data.{options[name]}" for name in options if name in parameters
            ]
            raise DataError(f"{type(self).__name__}: there is no {split} set{''.join(hints[:1])}")
        return dataset


class DetectionDataModule(DataModule):
    """Base of the data sets for detection. A subclass reads a split (`read`) and sets the classes.

    Args:
        group_by_aspect: make up batches of wide or of tall images, so that little is padded.
        shared: see DataModule.

    Attributes:
        proposals: split -> image_id -> boxes (P, 4), as `use_proposals` was given them.
    """

    def __init__(self, group_by_aspect: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        self.group_by_aspect = group_by_aspect
        self.proposals: dict[str, Mapping[str | int, Any]] = {}

    def read(self, split: str) -> Annotations | None:
        """Read "train", "val" or "test" from disk; None where the data set has no such split."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def annotations(self, split: str) -> Annotations | None:
        """The annotations of a split, read at most once; None where there is no such split."""
        return self.content(split)

    def make_dataset(self, split: str, content: Annotations, transform: Transform | None) -> DetectionDataset:
        """Samples of the split's images."""
        return DetectionDataset(content, transform, self._proposals_of(split, self.proposals), self.seed)

    def use_proposals(self, stores: Mapping[str, Mapping[str | int, Any]]) -> None:
        """Let the samples of some splits carry "proposals".

        Args:
            stores: split -> image_id -> boxes (P, 4), for example a `ProposalStore`. Where `test` reads the validation
                split, those of "val" serve it too.

        Raises:
            ConfigError: there is no such split.
            DataError: a store does not fit its split; none of them is used then.
        """
        unknown = sorted(set(stores) - set(SPLITS))
        if unknown:
            raise ConfigError(f"proposals for {', '.join(unknown)}: the splits are train, val and test")
        proposals = self.proposals | dict(stores)
        checked = {split: self._proposals_of(split, proposals) for split in self._datasets}  # all before any is used
        self.proposals = proposals
        for split, dataset in self._datasets.items():
            dataset.proposals = checked[split]

    def _proposals_of(
        self, split: str, proposals: Mapping[str, Mapping[str | int, Any]]
    ) -> Mapping[str | int, Any] | None:
        store = proposals.get(split)
        if store is None and split == "test":
            store = proposals.get(self.test_split)
        annotations = self.annotations(split)
        if isinstance(store, ProposalStore) and annotations is not None:
            store.check(annotations.image_ids, annotations.widths, annotations.heights)
        return store

    def summary(self, splits: Sequence[str] = SPLITS) -> DataSummary:
        """What the splits hold and what was found in them."""
        contents = {split: self.annotations(split) for split in splits}
        present = {split: annotations for split, annotations in contents.items() if annotations is not None}
        return DataSummary.of(present, self.class_names, self.category_ids)

    def print_summary(self, splits: Sequence[str]) -> None:
        """Print the summary as a table."""
        self.summary(splits).print()

    def _wide(self, dataset: DetectionDataset) -> np.ndarray | None:
        return dataset.annotations.wide if self.group_by_aspect else None
