"""What every data set of the project shares: splits, classes, loaders and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.dataset import DetectionDataset
from detkit.data.module import STAGES, DataModule
from detkit.data.summary import DataSummary
from detkit.data.transforms import make_transform
from detkit.errors import ConfigError
from detkit.proposals.store import ProposalStore

__all__ = ["STAGES", "DetectionDataModule"]


class DetectionDataModule(DataModule):
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
        super().__init__(batch_size, eval_batch_size, num_workers, transforms, seed, class_names)
        self.group_by_aspect = group_by_aspect
        self.proposals: dict[str, Mapping[str | int, Any]] = {}
        self._annotations: dict[str, Annotations | None] = {}
        self._datasets: dict[str, DetectionDataset] = {}
        self._printed = False

    # -- for subclasses ------------------------------------------------------

    def read(self, split: str) -> Annotations | None:
        """Read "train", "val" or "test" from disk; None where the data set has no such split."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")

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

    def summary(self, splits: Sequence[str] = ("train", "val", "test")) -> DataSummary:
        """What the splits hold and what was found in them."""
        read = {split: self.annotations(split) for split in splits}
        present = {split: annotations for split, annotations in read.items() if annotations is not None}
        return DataSummary.of(present, self.class_names, self.category_ids)

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; prints the summary once, on rank 0 of a run.

        Raises:
            DataError: there is nothing to test on.
        """
        splits = STAGES[stage] if stage is not None else ("train", "val", "test")
        self._datasets.clear()
        for split in splits:
            self.dataset(split)
        if stage == "test":  # told before a summary of nothing
            self._required("test")
        if self.trainer is not None and self.trainer.is_global_zero and not self._printed and stage != "predict":
            self._printed = True
            self.summary(splits).print()

    def _wide(self, dataset: DetectionDataset) -> np.ndarray | None:
        return dataset.annotations.wide if self.group_by_aspect else None
