"""Proposals that are given to a detector: R-CNN's and Fast R-CNN's, from stores of the data set's splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from detkit.data.annotations import Annotations
from detkit.data.datamodule import STAGES, DetectionDataModule
from detkit.engine.checkpoints import hyper_parameters
from detkit.errors import ConfigError, DataError
from detkit.proposals.compute import SUFFIX, ProposalTask, default_store_path, load_or_compute, store_path
from detkit.proposals.methods import ProposalMethod, SelectiveSearch, StoredRPN
from detkit.proposals.store import Images, ProposalStore
from detkit.settings import check_range, nested
from detkit.system import available_cores
from detkit.types import Batch


@dataclass(frozen=True)
class ProposalSettings:
    """Which proposals, and how many of them.

    Args:
        method: SelectiveSearch, SlidingWindows, StoredRPN (stores made by ``detkit propose``), or a class of your own
            that is derived from `detkit.proposals.ProposalMethod`; as ``{class_path: ..., init_args: {...}}``.
        path: a store's file, or the folder of the splits' stores; null: beside the data set. A file's name ends with
            .proposals.
        max_boxes: best proposals of an image that are used, in training and otherwise; null: all.
    """

    method: ProposalMethod = SelectiveSearch()
    path: str | None = None
    max_boxes: tuple[int | None, int | None] = (2000, 2000)

    def __post_init__(self) -> None:
        if not isinstance(self.method, ProposalMethod) or not is_dataclass(self.method):
            raise ConfigError(f"proposals.method {self.method!r} must be an object of a ProposalMethod, a dataclass")
        for limit in self.max_boxes:
            check_range("proposals.max_boxes", limit, 1)

    @property
    def names_file(self) -> bool:
        """Whether ``path`` is a file. One that is not there by that name is a mistake, and no folder to be made."""
        return self.path is not None and (Path(self.path).suffix == SUFFIX or Path(self.path).is_file())

    def store_path(self, annotations: Annotations, split: str) -> Path:
        """The file of a split's proposals."""
        if self.names_file:
            return Path(self.path)
        if self.path is not None:
            return store_path(Path(self.path), split, self.method)
        # COCO's images have a folder of their own, in which nothing else is to be written.
        in_folders = any(os.path.dirname(file) for file in annotations.files[:1])
        root = Path(annotations.root) if in_folders else Path(annotations.root).parent
        return default_store_path(root, split, self.method)

    def open_store(self, annotations: Annotations, split: str) -> ProposalStore:
        """The store of a split. Of a network's stores, the one that has the options that are given.

        Raises:
            DataError: there is none, or it is damaged; or there are several.
        """
        path = self.store_path(annotations, split)
        if not isinstance(self.method, StoredRPN) or path.exists() or self.names_file:
            return ProposalStore(path)
        given = {name: value for name, value in asdict(self.method).items() if value is not None}
        stores = [ProposalStore(each) for each in sorted(path.parent.glob(f"{split}-StoredRPN-*{SUFFIX}"))]
        stores = [store for store in stores if given.items() <= store.parameters.items()]
        if len(stores) != 1:
            raise DataError(
                f"{path.parent}: holds {len(stores) or 'no'} stores of StoredRPN proposals for {split}, and one is "
                "needed: make it with `detkit propose`, or name the file as proposals.path"
            )
        return stores[0]

    def task(self, annotations: Annotations, split: str) -> ProposalTask:
        """How the store of a split is computed. One in a place that the user has named is not extended."""

        images = Images.of(annotations.image_ids, annotations.widths, annotations.heights)
        path = self.store_path(annotations, split)
        return ProposalTask(path, images, annotations.image, self.method, grow=self.path is None)


class GivenProposals:
    """The proposals of a detector that makes none itself.

    They come as ``proposals`` with the samples, from stores that a fit computes where they are missing. An image
    without them (`predict`, or ``fast_dev_run`` where there is no store) is searched when it is needed.
    """

    def __init__(self, settings: ProposalSettings) -> None:
        self.settings = settings
        self._splits_given: list[str] = []
        self._path_of_checkpoint: str | None = None

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take note of the path that a checkpoint names: in a folder without stores none is written there."""
        kept = nested(hyper_parameters(checkpoint)).get("proposals")
        path = kept.get("path") if isinstance(kept, Mapping) else None
        self._path_of_checkpoint = os.path.abspath(path) if isinstance(path, str) else None

    def of_batch(self, batch: Batch, training: bool) -> list[Tensor]:
        """The best proposals (P, 4) of each image, in its own pixels."""
        proposals = [sample.get("proposals") for sample in batch]
        without = [i for i, boxes in enumerate(proposals) if boxes is None]
        computed = self.of_images([batch[i]["image"] for i in without], [batch[i].get("image_id") for i in without])
        for i, boxes in zip(without, computed, strict=True):
            proposals[i] = boxes
        limit = self.settings.max_boxes[0 if training else 1]
        return [boxes[:limit] for boxes in proposals]

    def of_images(self, images: Sequence[Tensor], image_ids: Sequence[str | int | None]) -> list[Tensor]:
        """Proposals (P, 4) of images, uint8 (3, H, W), in their pixels; computed side by side on all cores.

        They are those that a store would have, but for its rounding to eighths of a pixel.

        Raises:
            ConfigError: for proposals that are not made from pixels.
        """

        def one(image: Tensor, image_id: str | int | None) -> Tensor:
            pixels = np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())
            boxes = self.settings.method(pixels, image_id)
            return torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)

        if len(images) < 2:
            return [one(image, image_id) for image, image_id in zip(images, image_ids, strict=True)]
        with ThreadPoolExecutor(available_cores(), "proposals") as pool:
            return list(pool.map(one, images, image_ids))

    def of_first(self, annotations: Annotations, count: int) -> dict[str | int, np.ndarray]:
        """Proposals (P, 4) of a split's first ``count`` images, by their ids; computed now and kept nowhere.

        Raises:
            DataError: an image cannot be read.
        """
        task = self.settings.task(annotations, "train")
        boxes: dict[str | int, np.ndarray] = {}
        for index in range(count):
            result = task.propose(index)
            if result is None:
                task.read(index)  # says why
            boxes[annotations.image_id(index)] = result[0]
        return boxes

    def prepare_data(self, trainer: L.Trainer) -> None:
        """Compute the stores that are missing; Lightning calls it in one process of each machine.

        Raises:
            ConfigError: they would begin a folder that only the checkpoint names.
        """
        for split, images in self._splits(trainer, trainer.state.fn):
            self._check_folder(split)
            self.compute(images, split)

    def compute(self, annotations: Annotations, split: str) -> ProposalStore:
        """The store of a split, computed now if it is missing; a DataError where it cannot or shall not be."""
        if self._is_computed:
            return load_or_compute(self.settings.task(annotations, split))
        return self.settings.open_store(annotations, split)

    def setup(self, trainer: L.Trainer, stage: str) -> None:
        stores = {
            split: self.settings.open_store(annotations, split) for split, annotations in self._splits(trainer, stage)
        }
        if stores:
            trainer.datamodule.use_proposals(stores)
            self._splits_given = list(stores)

    def teardown(self, trainer: L.Trainer) -> None:
        while self._splits_given:
            trainer.datamodule.proposals.pop(self._splits_given.pop(), None)

    def _check_folder(self, split: str) -> None:
        """Refuse to begin a folder of stores that the checkpoint names: it may be a stranger's."""
        path = self.settings.path
        if path is None or not self._is_computed or os.path.abspath(path) != self._path_of_checkpoint:
            return
        if not any(Path(path).glob(f"*{SUFFIX}")):
            raise ConfigError(
                f"proposals.path {path}: only the checkpoint names this folder, which holds no proposals, and so it is "
                f"not written to. Make them with `detkit propose --config CONFIG --split {split} --output {path}`, or "
                "give --model.proposals.path another folder"
            )

    @property
    def _is_computed(self) -> bool:
        """Whether stores are computed where they are missing; not those that the user has named."""
        return not isinstance(self.settings.method, StoredRPN) and not self.settings.names_file

    def _splits(self, trainer: L.Trainer, stage: str) -> list[tuple[str, Annotations]]:
        """The splits that a stage reads from a store; with ``fast_dev_run`` those that are there."""
        data: Any = trainer.datamodule
        if not isinstance(data, DetectionDataModule):
            return []
        splits = [data.test_split if split == "test" else split for split in STAGES[stage]]
        if stage == "fit" and trainer.limit_val_batches == 0:
            splits.remove("val")
        found = [(split, data.annotations(split)) for split in splits if split not in data.proposals]
        wanted = [(split, images) for split, images in found if images is not None]
        if trainer.fast_dev_run and self._is_computed:
            wanted = [(split, images) for split, images in wanted if self.settings.store_path(images, split).exists()]
        return wanted
