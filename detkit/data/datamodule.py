"""What every data set of the project shares: splits, classes, loaders and the summary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from detkit.data.annotations import Annotations, check_class_names
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import default_workers, make_eval_loader, make_train_loader, resume_position
from detkit.data.sampler import TrainSampler
from detkit.data.summary import DataSummary
from detkit.data.transforms import make_transform
from detkit.errors import ConfigError, DataError
from detkit.proposals.store import ProposalStore

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class DetectionDataModule(L.LightningDataModule):
    """Base of the data sets. A subclass says how a split is read (`read`) and sets the classes.

    Args:
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation, test and prediction; None takes batch_size.
        num_workers: processes that read images; None takes one less than the cores, at most 4; 0 reads in
            the main process.
        transforms: training augmentation: albumentations transforms, each as `class_path` and
            `init_args`; None is a horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; any integer from 0; None takes seed_everything's.
        group_by_aspect: make up batches of wide or of tall images, so that little is padded.
        class_names: the classes in the order of the labels 1..K; None finds them in the data.

    Attributes:
        class_names: list[str], background not among them. Known after `__init__`.
        category_ids: the data set's own ids, in the order of class_names.
        proposals: split -> image_id -> boxes (P, 4), as `use_proposals` was given them.
    """

    def __init__(
        self,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        transforms: list[dict[str, Any]] | None = None,
        seed: int | None = None,
        group_by_aspect: bool = False,
        class_names: list[str] | None = None,
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
        self.transforms, self.seed, self.group_by_aspect = transforms, seed, group_by_aspect
        self.class_names: list[str] = [] if class_names is None else check_class_names(class_names)
        self.category_ids: list[int] = list(range(1, len(self.class_names) + 1))
        self.proposals: dict[str, Mapping[str | int, Any]] = {}
        self._annotations: dict[str, Annotations | None] = {}
        self._datasets: dict[str, DetectionDataset] = {}
        self._printed = False

    @property
    def num_classes(self) -> int:
        """Number of classes without background."""
        return len(self.class_names)

    # -- for subclasses ------------------------------------------------------

    def read(self, split: str) -> Annotations | None:
        """Read "train", "val" or "test" from disk; None where the data set has no such split."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def _set_classes(self, names: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.class_names = check_class_names(names)
        self.category_ids = list(category_ids) if category_ids is not None else list(range(1, len(names) + 1))

    # -- for everyone --------------------------------------------------------

    def annotations(self, split: str) -> Annotations | None:
        """The annotations of a split, read at most once.

        Raises:
            DataError: the split cannot be read.
        """
        if split not in self._annotations:
            self._annotations[split] = self.read(split)
        return self._annotations[split]

    def dataset(self, split: str) -> DetectionDataset | None:
        """The samples of a split; those of "train" are augmented."""
        if split not in self._datasets:
            annotations = self.annotations(split)
            if annotations is None:
                return None
            transform = make_transform(self.transforms) if split == "train" else None
            if transform is not None and hasattr(transform, "build"):
                transform.build()  # a wrong transform is told now, not from within a worker
            proposals = self._proposals_of(split, self.proposals)
            self._datasets[split] = DetectionDataset(annotations, transform, proposals, self.seed)
        return self._datasets[split]

    def use_proposals(self, stores: Mapping[str, Mapping[str | int, Any]]) -> None:
        """Let the samples of some splits carry "proposals", in data sets that are built already and those to come.

        Args:
            stores: split -> image_id -> boxes (P, 4), for example a `ProposalStore`. Where `test` reads the validation
                split, those of "val" serve it too.

        Raises:
            ConfigError: there is no such split.
            DataError: a store does not fit its split; none of them is used then.
        """
        unknown = sorted(set(stores) - {"train", "val", "test"})
        if unknown:
            raise ConfigError(f"proposals for {', '.join(unknown)}: the splits are train, val and test")
        proposals = self.proposals | dict(stores)
        found = {split: self._proposals_of(split, proposals) for split in self._datasets}  # all are checked first
        self.proposals = proposals
        for split, dataset in self._datasets.items():
            dataset.proposals = found[split]

    def _proposals_of(
        self, split: str, proposals: Mapping[str, Mapping[str | int, Any]]
    ) -> Mapping[str | int, Any] | None:
        found = proposals.get(split)
        if found is None and split == "test":
            found = proposals.get(self.test_split)
        annotations = self.annotations(split)
        if isinstance(found, ProposalStore) and annotations is not None:
            found.check(annotations.image_ids, annotations.widths, annotations.heights)
        return found

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where there is no other."""
        return "test"

    def summary(self, splits: Sequence[str] = ("train", "val", "test")) -> DataSummary:
        """What the splits hold and what was found in them."""
        read = {split: self.annotations(split) for split in splits}
        present = {split: annotations for split, annotations in read.items() if annotations is not None}
        return DataSummary.of(present, self.class_names, self.category_ids)

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; prints the summary once, on rank 0 of a run."""
        splits = STAGES[stage] if stage is not None else ("train", "val", "test")
        self._datasets.clear()
        for split in splits:
            self.dataset(split)
        if self.trainer is not None and self.trainer.is_global_zero and not self._printed and stage != "predict":
            self._printed = True
            self.summary(splits).print()

    def train_dataloader(self) -> DataLoader:
        """Augmented samples in seeded random order."""
        dataset = self._required("train")
        wide = dataset.annotations.wide if self.group_by_aspect else None
        sampler = TrainSampler(len(dataset), self.seed, self.batch_size, wide)
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

    def _required(self, split: str) -> DetectionDataset:
        dataset = self.dataset(split)
        if dataset is None:
            raise DataError(f"{type(self).__name__}: there is no {split} set; name one")
        return dataset
