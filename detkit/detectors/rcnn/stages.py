"""The stages of a fit of R-CNN after fine-tuning: features, linear SVMs, box regressors, comparison of the variants.

Each ends with a checkpoint. A fit that continues from it begins with the stage that was stopped, and uses the features
that are on the disk.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import make_own_loader
from detkit.detectors.base import Detector
from detkit.detectors.proposals import GivenProposals
from detkit.detectors.rcnn.ablation import Ablation
from detkit.detectors.rcnn.features import (
    FeatureFileSettings,
    FeatureLayout,
    RegionFeatures,
    acquire_lock,
    check_room,
    delete_folder,
    digest,
)
from detkit.detectors.rcnn.learning import learn_boxes, learn_svms, write_mining_log
from detkit.detectors.rcnn.training_regions import TrainingRegions
from detkit.engine.callbacks import StageCheckpoint
from detkit.errors import CheckpointError, ConfigError
from detkit.evaluation.tables import ablation_table
from detkit.features import CropFeatures
from detkit.features.crop_reader import CropReader
from detkit.heads import BoxRegressorSettings, CropClassifier, SVMSettings, Variant
from detkit.progress import Progress, duration
from detkit.proposals.store import ProposalStore
from detkit.torch_files import check_form
from detkit.types import Batch, Detections, Sample

#: In this order; a checkpoint holds the last one that is finished.
FINE_TUNING, SVMS, BOXES, COMPARISON = STAGES = ("fine-tuning", "SVMs", "box regressors", "comparison")
#: The model's arguments that the features depend on, besides `box.min_iou` and the budget.
FEATURES_DEPEND_ON = ("image", "proposals", "crop", "train_on_difficult", "classifier", "box_regression")
#: If one of these changes, a fit that continues runs the stages again.
STAGES_DEPEND_ON = (*FEATURES_DEPEND_ON, "svm", "box")


class RCNNStages(Callback):
    """Runs the stages after fine-tuning, at the end of a fit of `RCNN`, and keeps in checkpoints which are finished.

    Attributes:
        stage: the last stage that is finished.
        run_id: a name for the fit and all that continue from its checkpoints; their features are stored under it.
        learn_again: the stages run again although the checkpoint has finished them.
    """

    def __init__(
        self,
        reader: CropReader,
        heads: CropClassifier,
        given: GivenProposals,
        detect_variants: Callable[[Batch, list[Variant]], list[list[Detections]]],
        svm: SVMSettings,
        box: BoxRegressorSettings,
        feature_files: FeatureFileSettings,
    ) -> None:
        self.reader = reader
        self.heads = heads
        self.given = given
        self.detect_variants = detect_variants
        self.svm = svm
        self.box = box
        self.feature_files = feature_files
        self.stage = FINE_TUNING
        self.run_id = ""
        self.learn_again = False
        self._layout: FeatureLayout | None = None
        self._lock: FileLock | None = None

    def remaining(self) -> list[str]:
        """The stages that are to be run."""
        svms, boxes = self.heads.requested.classifier == "svm", self.heads.requested.box_regression
        wanted = {SVMS: svms, BOXES: boxes, COMPARISON: svms or boxes}
        return [stage for stage in STAGES[STAGES.index(self.stage) + 1 :] if wanted[stage]]

    def apply_overrides(self, changed: Mapping[str, Any]) -> None:
        """Run the stages again if options that they depend on are changed; fine-tuning continues where it was."""
        relevant = {name.partition(".")[0] for name in changed if name != "crop.memory"}
        self.learn_again = not relevant.isdisjoint(STAGES_DEPEND_ON)

    def finished_stage(self, checkpoint: Mapping[str, Any]) -> str:
        """The last stage after fine-tuning that a checkpoint has finished; "" if none, or if they run again."""
        stage = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("stage", FINE_TUNING)
        return "" if self.learn_again or stage == FINE_TUNING else stage

    # -- Lightning -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "run_id": self.run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_form(state_dict, self.state_dict(), "callbacks.RCNNStages")
        # Folders are deleted by this name, and a checkpoint may be a stranger's.
        if not re.fullmatch(r"\w*", state_dict["run_id"]) or state_dict["stage"] not in STAGES:
            raise CheckpointError("its entry callbacks.RCNNStages is not as detkit writes it")
        self.run_id = state_dict["run_id"]
        self.stage = FINE_TUNING if self.learn_again else state_dict["stage"]

    def on_fit_start(self, trainer: Trainer, pl_module: Detector) -> None:
        """Refuse, before the fine-tuning, a fit whose later stages cannot learn or store their features."""
        if trainer.ckpt_path is None:
            self.stage, self.run_id = FINE_TUNING, ""
        if not self.run_id:
            self.run_id = trainer.strategy.broadcast(uuid4().hex[:8])
        self._layout = None
        if not self.remaining():
            return
        if not isinstance(trainer.datamodule, DetectionDataModule):
            raise ConfigError(
                "R-CNN's SVMs and box regressors learn from one of detkit's data sets: fit with trainer.fit(model, "
                "datamodule), or set classifier: softmax and box_regression: false"
            )
        if not trainer.fast_dev_run:
            self._layout = self._make_layout(self._regions(trainer, pl_module))
            folder, spare = Path(trainer.default_root_dir) / "features", 0
            for path in folder.glob(f"{self.run_id}-*/*"):  # is used again, or deleted for the new ones
                with suppress(OSError):
                    spare += path.stat().st_size
            check_room(folder, self._layout.bytes, spare)

    def on_train_start(self, trainer: Trainer, pl_module: Detector) -> None:
        """Drop what was learned from the features: more fine-tuning changes them."""
        self.stage = FINE_TUNING
        self.heads.svms.trained.fill_(False)
        self.heads.box_regressors.trained.fill_(False)

    def on_fit_end(self, trainer: Trainer, pl_module: Detector) -> None:
        """Run the remaining stages. Lightning calls this after the last epoch, also if none was left to train."""
        remaining = self.remaining()
        if trainer.interrupted or not remaining:
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        folder = self._folder(trainer, pl_module)
        try:
            with torch.no_grad():
                features = None if remaining == [COMPARISON] else self._fill(trainer, pl_module, folder)
                for stage in remaining:
                    if stage == SVMS:
                        self._learn_svms(trainer, pl_module, features)
                    elif stage == BOXES:
                        self._learn_boxes(trainer, features)
                    else:
                        self._delete_features(trainer, folder)
                        self._compare(trainer, pl_module)
                    self.stage = stage
                    for callback in trainer.checkpoint_callbacks:
                        if isinstance(callback, StageCheckpoint):
                            callback.save_stage(trainer, complete=stage == COMPARISON)
        finally:  # the process may continue after an error
            self._release_lock()
        for module, training in modes:
            module.training = training

    # -- features --------------------------------------------------------------------------------

    def _regions(self, trainer: Trainer, pl_module: Detector) -> TrainingRegions:
        data: DetectionDataModule = trainer.datamodule
        annotations, proposals = data.annotations("train"), data.proposals.get("train")
        count = int(trainer.fast_dev_run) * data.batch_size or len(annotations)
        if proposals is None:  # fast_dev_run
            proposals = self.given.of_first(annotations, min(count, len(annotations)))
        return TrainingRegions(
            annotations,
            proposals,
            pl_module.num_classes,
            self.given.settings.max_boxes[0],
            pl_module.train_on_difficult,
            self.box.min_iou if self.heads.requested.box_regression else math.inf,
            count,
        )

    def _make_layout(self, regions: TrainingRegions) -> FeatureLayout:
        network = self.reader.network
        sizes = (network.pool5_features, network.fc7_features)
        all_fc7 = self.heads.requested.classifier == "svm"
        return FeatureLayout(regions, sizes, self.feature_files.budget, all_fc7)

    def _folder(self, trainer: Trainer, pl_module: Detector) -> Path:
        """The folder of the features, named after the run and all that they depend on; the same on all ranks."""
        annotations = trainer.datamodule.annotations("train")
        about = {name: pl_module.hparams[name] for name in FEATURES_DEPEND_ON}
        about["crop"] = {name: value for name, value in about["crop"].items() if name != "memory"}
        root = os.path.abspath(annotations.root)  # from whatever folder the run goes on
        about |= {"min_iou": self.box.min_iou, "budget": self.feature_files.budget, "root": root}
        for array in ("image_ids", "offsets", "boxes", "labels", "difficult", "crowd"):
            about[array] = zlib.crc32(getattr(annotations, array).tobytes())
        store = trainer.datamodule.proposals.get("train")
        if isinstance(store, ProposalStore):  # not a mapping that was given in Python, or none with fast_dev_run
            about["store"] = (os.path.abspath(store.path), store.path.stat().st_mtime_ns)
        name = f"{self.run_id}-{digest(self.reader.network, about)}"
        if trainer.fast_dev_run:  # which writes nothing to the run's folder
            temporary = tempfile.mkdtemp(prefix="detkit-") if trainer.is_global_zero else ""
            return Path(trainer.strategy.broadcast(temporary)) / name
        return Path(trainer.default_root_dir) / "features" / name

    def _fill(self, trainer: Trainer, pl_module: Detector, folder: Path) -> RegionFeatures:
        """The features of the training split; those that are missing are computed, by all ranks."""

        def read(sample: Sample, boxes: Tensor) -> CropFeatures:
            images = pl_module.prepare([sample])
            return self.reader.read(images[0], images.to_batch(boxes, 0).to(pl_module.device))

        regions = self._regions(trainer, pl_module)
        layout = self._layout or self._make_layout(regions)
        features = RegionFeatures(regions, layout, DetectionDataset(regions.annotations), read, folder)
        self._acquire_lock(trainer, features)
        missing, began = features.missing(), time.monotonic()
        content = "of all regions" if layout.complete else "of ground truth and the regressors' examples"
        _print(
            trainer,
            f"features {content}: {len(features):,} images, {layout.bytes / 1e9:.2f} GB (budget "
            f"{self.feature_files.budget:g} GB) in {folder}",
        )
        # By the image's number, since not all ranks see the same images as missing.
        images = [i for i in missing if i % trainer.world_size == trainer.global_rank]
        workers = trainer.datamodule.num_workers
        features.fill(images, lambda dataset: make_own_loader(dataset, workers), show=trainer.is_global_zero)
        if trainer.is_global_zero:
            for stale in folder.glob("*.result"):
                stale.unlink()
        _wait_until(lambda: not features.missing())
        trainer.strategy.barrier("features")
        if missing:
            _print(trainer, f"features: {len(missing):,} images read, in {duration(time.monotonic() - began)}")
        return features

    def _acquire_lock(self, trainer: Trainer, features: RegionFeatures) -> None:
        """Lock the folder, delete this run's other features, and create the files.

        Two fits from one checkpoint have the same features, but not the same mining state: one may use the folder.
        """
        run = trainer.log_dir or trainer.default_root_dir  # a collective call
        error = ""
        if trainer.is_global_zero:
            try:
                self._lock = acquire_lock(features.folder, f"the fit in {run} (process {os.getpid()})")
                if not self.feature_files.keep:
                    self._delete_others(features.folder)
                features.create()
            except ConfigError as refusal:
                error = str(refusal)
        error = trainer.strategy.broadcast(error)
        if error:  # raised by all ranks, so that none waits for the first
            raise ConfigError(error)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _delete_features(self, trainer: Trainer, folder: Path) -> None:
        """Delete the features, including those of an interrupted fit of this run, unless they are to be kept."""
        self._release_lock()
        if trainer.is_global_zero and (trainer.fast_dev_run or not self.feature_files.keep):
            delete_folder(folder)
            self._delete_others(folder)
            with suppress(OSError):  # features of other fits are there
                folder.parent.rmdir()

    def _delete_others(self, folder: Path) -> None:
        """Delete this run's features of the network as it was before."""
        for path in folder.parent.glob(f"{self.run_id}-*"):
            if path.is_dir() and path != folder:
                delete_folder(path)

    # -- the stages ------------------------------------------------------------------------------

    def _learn_svms(self, trainer: Trainer, pl_module: Detector, features: RegionFeatures) -> None:
        began, svms, names = time.monotonic(), self.heads.svms, pl_module.class_names
        run_folder = trainer.log_dir  # a collective call
        if trainer.is_global_zero:
            miner = learn_svms(features, svms, self.svm)
            if run_folder is not None and not trainer.fast_dev_run:
                write_mining_log(Path(run_folder) / "svm_mining.csv", miner, names)
            untrained = [name for name, trained in zip(names, svms.trained, strict=True) if not trained]
            lacking = f"; no SVM, without examples: {', '.join(untrained)}" if untrained else ""
            found = f"{int(svms.trained.sum())} classes, {len(miner.rows):,} hard negatives{lacking}"
            print(f"SVMs: {found}, in {duration(time.monotonic() - began)}", flush=True)
            if capped := [names[k] for k in miner.capped.nonzero()[0]]:
                print(f"  limited memory: not all hard negatives were kept of {', '.join(capped)}", flush=True)
            if weak := [names[label - 1] for label in miner.weak_classes()]:
                print(
                    f"  SVMs with near-zero weights, which reject everything: {', '.join(weak)}; fine-tune longer, "
                    "with a smaller optim.lr if the loss stopped falling, or raise svm.c (and svm.passes)",
                    flush=True,
                )
        _share(svms, SVMS, features.folder, trainer)

    def _learn_boxes(self, trainer: Trainer, features: RegionFeatures) -> None:
        began, regressors = time.monotonic(), self.heads.box_regressors
        if trainer.is_global_zero:
            counts = learn_boxes(features, regressors, self.box.ridge)
            found = f"{int((counts > 0).sum())} classes, {int(counts.sum()):,} examples"
            print(f"box regressors: {found}, in {duration(time.monotonic() - began)}", flush=True)
        _share(regressors, BOXES, features.folder, trainer)

    def _compare(self, trainer: Trainer, pl_module: Detector) -> None:
        """The four ways to detect, on the validation split."""
        limit = trainer.limit_val_batches
        if trainer.datamodule.annotations("val") is None or limit == 0:
            return
        loader = trainer.datamodule.val_dataloader()
        count = min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader))
        ablation = Ablation(self.heads.variants, self.heads.variant, pl_module.metric)
        with Progress("validation", count, unit="batches", show=trainer.is_global_zero) as progress:
            for batch in itertools.islice(loader, count):
                batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                ablation.update(batch, self.detect_variants(batch, ablation.variants))
                progress.step()
        rows = ablation.finish()
        pl_module.metric.reset()
        _print(trainer, f"validation, {pl_module.metric.protocol.description}\n{ablation_table(rows)}")
        pl_module.last_metrics = {name: row[name] for row in rows if row["used"] for name in ("map", "map_50")}
        pl_module.last_metrics["protocol"] = pl_module.protocol_description
        values = {f"val/{name}": pl_module.last_metrics[name] for name in ("map", "map_50")}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for row in rows:  # val/map_svm_boxes, ...
            variant = row["variant"].lower().replace(" + ", "_")
            values |= {f"val/{name}_{variant}": row[name] for name in ("map", "map_50")}
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # `LightningModule.log` works within epochs only
                logger.log_metrics(values, step=trainer.global_step)
                logger.save()


def _share(module: nn.Module, name: str, folder: Path, trainer: Trainer) -> None:
    """Give the other ranks what the first has learned, through a file: a collective call would time out."""
    if trainer.world_size == 1:
        return
    path = folder / f"{name}.result"
    if trainer.is_global_zero:
        part = path.with_suffix(".part")
        torch.save({k: v.cpu() for k, v in module.state_dict().items()}, part)
        os.replace(part, path)
    _wait_until(path.is_file)
    module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    trainer.strategy.barrier(name)


def _wait_until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.5)


def _print(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)
