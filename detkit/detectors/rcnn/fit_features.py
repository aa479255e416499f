"""The features that a fit of R-CNN learns from after fine-tuning: their folder, room for them, and who may use them."""

from __future__ import annotations

import math
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import Tensor

from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import make_own_loader
from detkit.detectors.rcnn.region_features import RegionFeatures, delete, digest, hold
from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.errors import ConfigError
from detkit.features import CropFeatures
from detkit.progress import duration

if TYPE_CHECKING:
    from detkit.detectors.rcnn.model import RCNN

#: The model's options that decide what the features are and which of them are kept.
FEATURES_DEPEND_ON = (
    *("min_size", "max_size", "image_mean", "image_std", "crop_size", "crop_mode", "context", "bf16"),
    *("proposal_method", "proposal_mode", "proposal_options", "train_on_difficult", "box_min_iou", "feature_budget"),
    *("classifier", "box_regression"),
)


class FitFeatures:
    """`RegionFeatures` of the fit that a model is in.

    Args:
        model: within its fit; what is computed is its network's as it is then.
    """

    def __init__(self, model: RCNN) -> None:
        self.model, self.trainer, self.settings = model, model.trainer, model.stage_settings
        self.first = self.trainer.global_rank == 0
        self.lock: BinaryIO | None = None

    @property
    def data(self) -> DetectionDataModule:
        """The data set of the fit."""
        return self.trainer.datamodule

    @property
    def few(self) -> int | None:
        """Of how many images ``fast_dev_run`` computes features; otherwise None, for all."""
        return int(self.trainer.fast_dev_run) * self.data.batch_size or None

    @cached_property
    def folder(self) -> Path:
        """Where the features are, named after the run and all that they depend on."""
        annotations, hparams = self.data.annotations("train"), self.model.hparams
        about = {name: hparams[name] for name in FEATURES_DEPEND_ON}
        path = getattr(self.data.proposals.get("train"), "path", None)
        store = None if path is None else (str(path), Path(path).stat().st_mtime_ns)
        about |= {"proposals": store, "few": self.few, "max_proposals": self.model.max_proposals[0]}
        arrays = ("image_ids", "offsets", "boxes", "labels", "difficult", "crowd")
        about["annotations"] = [zlib.crc32(getattr(annotations, name).tobytes()) for name in arrays]
        name = digest(self.model.network, about | {"root": annotations.root})
        if self.trainer.fast_dev_run:  # it leaves nothing in the run's place
            made = tempfile.mkdtemp(prefix="detkit-") if self.first else ""
            return Path(self.trainer.strategy.broadcast(made)) / name
        return Path(self.trainer.default_root_dir) / "features" / f"{self.model.run_id}-{name}"

    def check_room(self) -> tuple[int, int, int]:
        """Whether the features will find room is known before the network is, and hours before they are computed.

        What this run has left there counts as room: it is used again, or deleted for the new ones. `fill` looks again.

        Returns:
            The regions' `counts`, which take a while: each has its overlaps computed.

        Raises:
            ConfigError: they will not.
        """
        folder, spare = Path(self.trainer.default_root_dir) / "features", 0
        for path in folder.glob(f"{self.model.run_id}-*/*"):
            with suppress(OSError):  # another fit deletes it just now
                spare += path.stat().st_size
        return self.find(folder / "to come", spare).counts

    def find(self, folder: Path, spare: int = 0) -> RegionFeatures:
        """The features of the training split in that folder, as far as they are there.

        Args:
            folder: of the features.
            spare: bytes on the disk that will make room for them.

        Raises:
            ConfigError: if they take more than the budget, or than the disk has left.
        """
        model, annotations, wanted = self.model, self.data.annotations("train"), self.model.roi_heads.settings
        proposals = self.data.proposals.get("train")
        if proposals is None:  # fast_dev_run: so few images serve
            proposals = model.source.of_first(annotations, min(self.few or len(annotations), len(annotations)))
        regions = TrainingRegions(
            annotations,
            proposals,
            model.num_classes,
            model.max_proposals[0],
            model.train_on_difficult,
            self.settings.box_min_iou if wanted.box_regression else math.inf,
            self.few,
        )
        sizes = (model.network.pool5_features, model.network.fc7_features)
        budget, every = self.settings.feature_budget, wanted.classifier == "svm"
        known, dataset = model.region_counts, DetectionDataset(annotations)
        return RegionFeatures(regions, dataset, self._read, sizes, folder, budget, every, spare, known)

    def fill(self) -> RegionFeatures:
        """Features of the training split, shared out among the ranks.

        Raises:
            ConfigError: they do not find room, or another fit uses them.
        """
        folder = self.folder  # found by all ranks together
        self.hold()
        features = self.find(folder)
        kind = "of all regions" if features.complete else "of ground truth and the regressors' examples"
        self.say(
            f"features {kind}: {len(features):,} images, {features.bytes / 1e9:.2f} GB (budget "
            f"{self.settings.feature_budget:g} GB) in {self.folder}"
        )
        began, count = time.monotonic(), len(features.todo)
        # By the images' numbers: what is there already is not seen by all ranks at the same moment.
        features.todo = [i for i in features.todo if i % self.trainer.world_size == self.trainer.global_rank]
        features.fill(lambda dataset: make_own_loader(dataset, self.data.num_workers), self.first)
        if self.first:
            for stale in self.folder.glob("*.learnt"):
                stale.unlink()
        self.wait(lambda: not features.missing())
        self.trainer.strategy.barrier("features")
        if count:
            self.say(f"features: {count:,} images read, in {duration(time.monotonic() - began)}")
        return features

    def hold(self) -> None:
        """Keep the folder to this fit, and make room in its place.

        Two fits that go on from one checkpoint have the same features, but not the same mining: one at a time.
        """
        place = self.trainer.log_dir or self.trainer.default_root_dir  # all ranks have to ask for it
        user, refusal = f"the fit in {place} (process {os.getpid()})", ""
        if self.first:
            try:
                self.lock = hold(self.folder, user)
            except ConfigError as error:
                refusal = str(error)
            else:
                for path in self.stale() if not self.settings.keep_features else ():
                    delete(path)
        if refusal := self.trainer.strategy.broadcast(refusal):  # all ranks end, none waits for the first
            raise ConfigError(refusal)

    def let_go(self) -> None:
        """Others may use the folder, or delete it."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def stale(self) -> list[Path]:
        """Features that this run has left where it was stopped, of the network as it was then."""
        return [path for path in self.folder.parent.glob(f"{self.model.run_id}-*") if path != self.folder]

    def forget(self) -> None:
        """Delete the features, also those that a fit stopped just here has left, when nothing learns from them more."""
        folder = self.folder  # found by all ranks together
        self.let_go()
        if self.first and (self.trainer.fast_dev_run or not self.settings.keep_features):
            for path in (folder, *self.stale()):
                delete(path)
            with suppress(OSError):  # another fit's are there
                folder.parent.rmdir()

    # -- parts ---------------------------------------------------------------------------------

    def _read(self, sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        model = self.model
        images = model.prepare([sample])
        return model.reader.read(images[0], images.to_batch(boxes, 0).to(model.device))

    def wait(self, until: Callable[[], bool]) -> None:
        """For another rank, however long it takes."""
        while not until():
            time.sleep(0.5)

    def say(self, text: str) -> None:
        """Once, whatever the number of ranks."""
        if self.first:
            print(text, flush=True)
