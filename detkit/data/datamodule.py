"""The data modules: what every data set shares, and what those for detection add.

A data set of one's own is a subclass of `DetectionDataModule` with a constructor and `read`; see docs/data.md.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from detkit.data.annotations import Annotations
from detkit.data.checks import quick_checks
from detkit.data.coco_files import decode
from detkit.data.dataset import DetectionDataset, Proposals, UnreadableAsSamples
from detkit.data.input_files import check_printable
from detkit.data.loaders import TrainLoader, default_workers, loader_options, make_eval_loader, samples_done
from detkit.data.mosaic import Mosaic
from detkit.data.sampler import TrainSampler, repeat_factors
from detkit.data.splitting import SPLITS, check_shares, choose_sets, split_annotations
from detkit.data.summary import DataSummary
from detkit.data.transforms import MOSAIC, Transform, make_transform
from detkit.data.voc_files import SPLIT_FILE
from detkit.errors import ConfigError, DataError
from detkit.proposals.store import ProposalStore
from detkit.settings import check_choice, check_range

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
#: The name of what is read of a data set that has no split.
ALL = "all"


class DataModule(L.LightningDataModule):
    """Splits that are read once, their classes, and their loaders.

    A subclass reads a split (`read`), makes samples of what was read (`make_dataset`) and prints a summary
    (`print_summary`).

    Args:
        batch_size: training images per step and device; at least 1.
        eval_batch_size: images per step in validation, test and prediction; None takes batch_size.
        num_workers: processes that read images; None takes one less than the cores, at most 4; 0 reads in
            the main process.
        transforms: training augmentation: flip, color, scale_jitter, crop or mosaic, or albumentations transforms, each
            as `class_path` and `init_args`; None is a horizontal flip half of the time, an empty list no augmentation.
        seed: of shuffling and augmentation; any integer from 0; None takes seed_everything's.
        class_names: the classes, without background, in the order of the labels 1..K; None takes those of the data
            set. The attribute of this name is known after `__init__`.

    Attributes:
        category_ids: the data set's own ids, in the order of class_names.
        sources: split -> what it is read from, None where the data set has no such split; for `test_split`.
        skip_unreadable: hand out images to predict on that cannot be read as samples with an ``error``.
    """

    def __init__(
        self,
        batch_size: int = 2,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        transforms: list[str | dict] | None = None,  # with dict[str, Any] jsonargparse would call what is nested in it
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
            check_range(name, getattr(self, name), least)
        self.class_names: list[str] = []
        self.category_ids: list[int] = []
        if class_names is not None:
            self._set_classes(class_names)
        self.sources: dict[str, str | None] = {}
        self.skip_unreadable = False
        self._content: dict[str, Any] = {}
        self._datasets: dict[str, Any] = {}
        self._printed = False

    def read(self, split: str) -> Any:
        """Read "train", "val" or "test" from disk; None where the data set has no such split.

        Called at most once a split, and not for "test" where `test_split` is "val". A data set for detection returns
        `Annotations`, one for classification `Examples`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement read")

    def make_dataset(self, split: str, content: Any, transform: Transform | None) -> Dataset:
        """The samples of what `read` gave for a split, augmented by `transform`."""
        raise NotImplementedError(f"{type(self).__name__} must implement make_dataset")

    def print_summary(self, splits: Sequence[str]) -> None:
        """Print what the splits hold."""
        raise NotImplementedError(f"{type(self).__name__} must implement print_summary")

    def category_ids_of(self, split: str) -> list[int]:
        """The ids that a split's own file gives the classes; empty where there are no annotations."""
        return self.category_ids

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where no test set is named."""
        return "val" if self.sources.get("test", "test") is None else "test"

    def _wide(self, dataset: Any) -> np.ndarray | None:
        """Which training images are wider than tall, where batches are grouped by that."""
        return None

    def _repeats(self, dataset: Any) -> np.ndarray | None:
        """How often each training image is read in an epoch; None: once."""
        return None

    def _set_classes(self, names: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.class_names = [str(name) for name in names]
        doubled = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if not self.class_names or doubled or not all(name.strip() for name in self.class_names):
            reason = f"given twice: {', '.join(doubled)}" if doubled else "none given, or one is empty"
            raise DataError(f"class names must be different and not empty ({reason})")
        for name in self.class_names:
            check_printable(name, "class name")
        self.category_ids = list(range(1, len(names) + 1)) if category_ids is None else list(category_ids)

    @property
    def num_classes(self) -> int:
        """Number of classes without background."""
        return len(self.class_names)

    def content(self, split: str) -> Any:
        """What `read` gives for a split, read at most once."""
        if split not in self._content:
            on_val = split == "test" and self.test_split == "val"
            self._content[split] = self.content("val") if on_val else self.read(split)
            if on_val and self._content[split] is not None:
                rank_zero_info("no test set is named: testing on the validation set")
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
        """Build what the stage needs; print the summary once, on rank 0 of a run. DataError without a test set."""
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
            repeats=self._repeats(dataset),
            samples_done=samples_done(self.trainer, self.batch_size),
        )
        return TrainLoader(dataset, batch_size=self.batch_size, sampler=sampler, **loader_options(self.num_workers))

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Validation samples in order; an empty list where there is no validation set."""
        dataset = self.dataset("val")
        return [] if dataset is None else make_eval_loader(dataset, self.eval_batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader:
        """Test samples in order."""
        return make_eval_loader(self._required("test"), self.eval_batch_size, self.num_workers)

    def predict_dataloader(self) -> DataLoader:
        """The images to predict on: those of the test set."""
        return self.predict_loader(self._required("test"))

    def predict_loader(self, dataset: Dataset) -> DataLoader:
        """A dataset's samples in order; see `skip_unreadable`."""
        dataset = UnreadableAsSamples(dataset) if self.skip_unreadable else dataset
        return make_eval_loader(dataset, self.eval_batch_size, self.num_workers)

    def _required(self, split: str) -> Any:
        dataset = self.dataset(split)
        if dataset is None:
            parameters = inspect.signature(type(self)).parameters
            options = {split: f"{split} SET", f"{split}_annotations": f"{split}_annotations FILE"}
            named = [option for name, option in options.items() if name in parameters]
            hint = f"; name one, on the command line by --data.{named[0]}" if named else ""
            raise DataError(f"{type(self).__name__}: there is no {split} set{hint}")
        return dataset


class DetectionDataModule(DataModule):
    """Base of the data sets for detection. A subclass reads a split (`read`) and sets the classes.

    Args:
        group_by_aspect: make up batches of wide or of tall images, so that little is padded.
        exif: whether a photo's EXIF orientation turns it: "apply", "ignore", or "auto", which does not turn an image
            that the annotation's size fits only as it is stored.
        sets: the images of train, val and test of a data set that has no split: lists of names, folders or patterns,
            text files of names, or a JSON file of such lists; by default split.json in the data set's folder, which
            `detkit split` writes.
        split: without that, the shares of train, val and test; their sum is 1. Images that are alike stay together.
        split_seed: of that split; any integer from 0.
        repeat_threshold: read images more than once an epoch that have a class which is in less than this share (0-1)
            of the training images, see `repeat_factors`; null: no image.
        shared: see DataModule.

    Attributes:
        proposals: split -> image_id -> boxes (P, 4), as `use_proposals` was given them.
    """

    def __init__(
        self,
        group_by_aspect: bool = False,
        exif: Literal["auto", "apply", "ignore"] = "auto",
        sets: dict[str, list[str | int] | str] | str | None = None,
        split: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        repeat_threshold: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.group_by_aspect = group_by_aspect
        check_choice("exif", exif, ("auto", "apply", "ignore"))
        check_shares(split)
        check_range("repeat_threshold", repeat_threshold, 0, 1)
        self.exif, self.repeat_threshold = exif, repeat_threshold
        self.sets, self.split, self.split_seed = sets, tuple(split), split_seed
        self.proposals: dict[str, Proposals] = {}
        self._undivided = False

    def annotations(self, split: str) -> Annotations | None:
        """The annotations of a split, read at most once; None where there is no such split."""
        return self.content(split)

    def content(self, split: str) -> Any:
        """What `read` gives for a split, read at most once; a data set without splits is divided."""
        if self.sets is not None and ALL not in self.sources:
            own = ", ".join(name for name, source in self.sources.items() if source is not None)
            raise ConfigError(f"sets: the data set has sets of its own ({own}); leave sets out")
        if ALL in self.sources and not self._content.keys() & set(SPLITS):
            parts, how = self.divide()
            if how:
                counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
                text = "the data set has no sets of its own; it" if self.is_drawn else "the data set"
                rank_zero_info(f"{text} is divided: {counts} ({how})")
            self._content |= {"train": None, "val": None} | parts
        return super().content(split)

    def divide(self, use_file: bool = True) -> tuple[dict[str, Annotations], str]:
        """Divide a data set that has no sets of its own, by `sets` or else by `split` and `split_seed`.

        Args:
            use_file: where `sets` is not given, use the file of `split_file` if there is one.

        Returns:
            split -> its images, and how they were chosen; images that are not annotated are all for prediction.

        Raises:
            DataError: the sets name no image, or an image twice.
        """
        whole, (sets, source) = self.read(ALL), self._sets(use_file)
        if not whole.annotated:
            return {"train": whole, "test": whole}, ""
        if self._undivided:
            return {"test": whole}, ""
        if sets is not None:
            return choose_sets(whole, sets, source), source
        how = f"split {', '.join(f'{share:g}' for share in self.split)}, split_seed {self.split_seed}"
        return split_annotations(whole, self.split, self.split_seed), how

    def division(self) -> dict[str, list[str]] | None:
        """Split -> its images' files, of a data set that is divided by detkit; None for one with sets of its own."""
        if ALL not in self.sources:
            return None
        parts = {split: self.content(split) for split in SPLITS}
        return {split: part.files.tolist() for split, part in parts.items() if part is not None}

    @property
    def split_file(self) -> str:
        """The file in the data set's folder that divides it for good."""
        path = str(getattr(self, "path", ""))
        return os.path.join(os.path.dirname(path) if os.path.isfile(path) else path, SPLIT_FILE)

    @property
    def is_drawn(self) -> bool:
        """Whether nothing but `split` and `split_seed` says which image is in which set."""
        return self.sets is None and not os.path.isfile(self.split_file)

    def _sets(self, use_file: bool) -> tuple[dict[str, Any] | None, str]:
        """The lists of `sets`, and where they are from."""
        if isinstance(self.sets, dict):
            return self.sets, "sets"
        if self.sets is None and not (use_file and os.path.isfile(self.split_file)):
            return None, ""
        source = self.split_file if self.sets is None else self.sets
        return decode(source, dict[str, list[str | int] | str], "lists called train, val and test"), source

    @property
    def test_split(self) -> str:
        """The split that `test` reads: "test", or "val" where no test set is named."""
        if ALL not in self.sources:
            return super().test_split
        self.content("train")
        return "test" if "test" in self._content else "val"

    def setup(self, stage: str | None = None) -> None:
        """Build what the stage needs; print the summary once, on rank 0 of a run.

        Raises:
            DataError: there is no test set, the training set has no box, or a set to compare with is not annotated.
        """
        # Nobody who predicts on a data set that has no sets means a tenth of it.
        self._undivided = stage == "predict" and self.is_drawn
        for split in STAGES.get(stage or "", ()) if stage != "predict" else ():
            annotations = self.annotations(split)
            if annotations is None:
                continue
            if not annotations.annotated:
                raise DataError(
                    f"{annotations.root}: no image of the {split} set is annotated, so there is nothing to compare "
                    "with; `detkit predict` needs no annotations"
                )
            if broken := next((each for each in annotations.findings if each.kind == "unreadable"), None):
                raise DataError(broken.message)
            if split == "train" and not len(annotations.boxes):
                kinds = Counter(finding.kind for finding in annotations.findings).most_common(1)
                why = f"; the most common finding is {kinds[0][0]!r}: {annotations.findings[0]}" if kinds else ""
                raise DataError(f"{annotations.root}: the training set has no box to learn from{why}")
        super().setup(stage)

    def make_dataset(self, split: str, content: Annotations, transform: Transform | None) -> DetectionDataset:
        """Samples of the split's images."""
        mosaic = Mosaic() if split == "train" and MOSAIC in (self.transforms or ()) else None
        return DetectionDataset(content, transform, self._proposals_of(split, self.proposals), self.seed, mosaic)

    def use_proposals(self, stores: Mapping[str, Proposals]) -> None:
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

    def _proposals_of(self, split: str, proposals: Mapping[str, Proposals]) -> Proposals | None:
        store = proposals.get(split)
        if store is None and split == "test":
            store = proposals.get(self.test_split)
        annotations = self.annotations(split)
        if isinstance(store, ProposalStore) and annotations is not None:
            store.check(annotations.image_ids, annotations.widths, annotations.heights)
        return store

    def summary(self, splits: Sequence[str] = SPLITS) -> DataSummary:
        """What the splits hold and what was found in them."""
        present = {split: found for split in splits if (found := self.annotations(split)) is not None}
        distinct = {split: found for split, found in present.items() if split != "test" or self.test_split == "test"}
        checks = quick_checks(distinct, self.class_names, self._max_detections())
        return DataSummary.of(present, self.class_names, self.category_ids, checks)

    def _max_detections(self) -> int | None:
        """How many objects the trainer's detector finds in an image; None where that is not known."""
        model = None if self.trainer is None else self.trainer.lightning_module
        settings = None if model is None else model.hparams.get("detection")
        return settings.get("max_detections") if isinstance(settings, dict) else None

    def print_summary(self, splits: Sequence[str]) -> None:
        """Print the summary as a table."""
        self.summary(splits).print()

    def _wide(self, dataset: DetectionDataset) -> np.ndarray | None:
        return dataset.annotations.wide if self.group_by_aspect else None

    def _repeats(self, dataset: DetectionDataset) -> np.ndarray | None:
        if self.repeat_threshold is None:
            return None
        return repeat_factors(dataset.annotations.labels, dataset.annotations.offsets, self.repeat_threshold)
