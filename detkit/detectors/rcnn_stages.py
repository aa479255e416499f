"""What a fit of R-CNN does after fine-tuning: features, linear SVMs, box regressors, and the comparison of all four.

Each stage ends with a checkpoint. A fit that goes on from it (`--ckpt_path last`) begins with the stage that was
stopped; of the features it has what is on the disk.
"""

from __future__ import annotations

import itertools
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

import torch
from torch import Tensor

from detkit.data.datamodule import DetectionDataModule
from detkit.data.dataset import DetectionDataset
from detkit.data.loaders import make_own_loader
from detkit.detectors.ablation import Ablation, ablation_table
from detkit.detectors.region_features import RegionFeatures, delete, digest, hold
from detkit.detectors.region_learning import learn_boxes, learn_svms
from detkit.detectors.training_regions import TrainingRegions
from detkit.errors import ConfigError
from detkit.features import CropFeatures
from detkit.files import write_beside
from detkit.heads import HardNegativeMiner, Training
from detkit.progress import Progress, duration

if TYPE_CHECKING:
    from detkit.detectors.rcnn import RCNN

#: In this order; a checkpoint says which of them it has behind it.
FINE_TUNING, SVMS, BOXES, COMPARISON = STAGES = ("fine-tuning", "SVMs", "box regressors", "comparison")

#: The model's options that decide what the features are and which of them are kept.
FEATURES_DEPEND_ON = (
    *("min_size", "max_size", "image_mean", "image_std", "crop_size", "crop_mode", "context", "bf16"),
    *("proposal_method", "proposal_mode", "proposal_options", "train_on_difficult", "box_min_iou", "feature_budget"),
    *("classifier", "box_regression"),
)


class Stages:
    """The stages after fine-tuning, on the trainer's device.

    Args:
        model: fine-tuned, within a fit that is at its end.
    """

    def __init__(self, model: RCNN) -> None:
        self.model, self.trainer, self.settings = model, model.trainer, model.stage_settings
        self.heads = model.roi_heads
        self.first = self.trainer.global_rank == 0
        self.features: RegionFeatures | None = None
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

    def todo(self) -> list[str]:
        """The stages that are left."""
        wanted = self.heads.settings
        stages = [SVMS] * (wanted.classifier == "svm") + [BOXES] * wanted.box_regression
        stages += [COMPARISON] * bool(stages)
        return [stage for stage in stages if STAGES.index(stage) > STAGES.index(self.model.stage)]

    def run(self) -> None:
        """All that are left, each with a checkpoint behind it."""
        todo, model = self.todo(), self.model
        if not todo:
            return
        model.to(self.trainer.strategy.root_device)  # Lightning has put it onto the CPU
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                self._run(todo)
        finally:  # whoever caught an error may go on in this very process
            self.let_go()
        for module, training in modes:
            module.training = training

    def _run(self, todo: list[str]) -> None:
        if todo != [COMPARISON]:
            self.features = self.fill()
        for stage in todo:
            if stage == COMPARISON:
                self.forget()
            {SVMS: self.svms, BOXES: self.boxes, COMPARISON: self.compare}[stage]()
            self.model.stage = stage
            self._checkpoint(complete=stage == COMPARISON)

    # -- the stages ----------------------------------------------------------------------------

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
        model, annotations, wanted = self.model, self.data.annotations("train"), self.heads.settings
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
        # By the images' numbers: what is there already is not seen by all ranks at the same moment.
        features.todo = [i for i in features.todo if i % self.trainer.world_size == self.trainer.global_rank]
        features.fill(lambda dataset: make_own_loader(dataset, self.data.num_workers), self.first)
        if self.first:
            for stale in self.folder.glob("*.learnt"):
                stale.unlink()
        self._wait(lambda: not features.missing())
        self.trainer.strategy.barrier("features")
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

    def svms(self) -> None:
        """One linear SVM a class, learnt by the first rank."""
        began, svms = time.monotonic(), self.heads.svms
        folder = self.trainer.log_dir  # all ranks have to ask for it
        if self.first:
            miner = learn_svms(self.features, svms, self.settings)
            self._write_log(miner, folder)
            names = [name for name, trained in zip(self.model.class_names, svms.trained, strict=True) if not trained]
            lacking = f"; n/a for want of examples: {', '.join(names)}" if names else ""
            found = f"{int(svms.trained.sum())} classes, {len(miner.rows):,} hard negatives{lacking}"
            self.say(f"SVMs: {found}, in {duration(time.monotonic() - began)}")
            if some := [self.model.class_names[k] for k in miner.capped.nonzero()[0]]:
                self.say(f"  for want of memory not all hard negatives were kept of: {', '.join(some)}")
            if weak := [self.model.class_names[label - 1] for label in miner.weak()]:
                advice = "fine-tune longer, with a smaller lr where the loss stands still, raise svm_c, or use softmax"
                self.say(f"  these hardly look at the features and say no to all: {', '.join(weak)}; {advice}")
        self._share(svms, SVMS)

    def boxes(self) -> None:
        """Four ridge regressors a class, learnt by the first rank."""
        began, regressors = time.monotonic(), self.heads.box_regressors
        if self.first:
            counts = learn_boxes(self.features, regressors, self.settings.box_lambda)
            found = f"{int((counts > 0).sum())} classes, {int(counts.sum()):,} examples"
            self.say(f"box regressors: {found}, in {duration(time.monotonic() - began)}")
        self._share(regressors, BOXES)

    def compare(self) -> None:
        """The four ways to detect, on the validation split."""
        annotations = self.data.annotations("val")
        if annotations is None or self.trainer.limit_val_batches == 0:
            return
        loader, model = self.data.val_dataloader(), self.model
        ablation, limit = Ablation(model), self.trainer.limit_val_batches
        count = min(limit, len(loader)) if isinstance(limit, int) else int(limit * len(loader))
        with Progress("validation", count, unit="batches", show=self.first) as progress:
            for batch in itertools.islice(loader, count):
                ablation.update(model.transfer_batch_to_device(batch, model.device, 0))
                progress.step()
        rows = ablation.finish()
        self.say(f"validation, {model.metric.protocol.description}\n{ablation_table(rows)}")
        found = {f"val/{name}": row[name] for row in rows if row["used"] for name in ("map", "map_50")}
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})
        for row in rows:  # val/map_svm_boxes, ...
            variant = row["variant"].lower().replace(" + ", "_")
            found |= {f"val/{name}_{variant}": row[name] for name in ("map", "map_50")}
        # The epochs are over, so that `log` is, too; but the loggers are open to the end of the fit.
        for logger in self.trainer.loggers if self.first else ():
            logger.log_metrics(found, step=self.trainer.global_step)
            logger.save()
        model.metric.reset()

    # -- parts ---------------------------------------------------------------------------------

    def _read(self, sample: dict[str, Any], boxes: Tensor) -> CropFeatures:
        model = self.model
        images = model.prepare([sample])
        return model.reader.read(images[0], images.to_batch(boxes, 0).to(model.device))

    def _share(self, module: torch.nn.Module, name: str) -> None:
        """What the first rank has learnt, for all, by way of a file: collective calls lose patience after a while."""
        if self.trainer.world_size == 1:
            return
        path = self.folder / f"{name}.learnt"
        if self.first:
            part = path.with_suffix(".part")
            torch.save({k: v.cpu() for k, v in module.state_dict().items()}, part)
            os.replace(part, path)
        self._wait(path.is_file)
        module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.trainer.strategy.barrier(name)

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until():
            time.sleep(0.5)

    def _checkpoint(self, complete: bool) -> None:
        for callback in self.trainer.callbacks:
            if hasattr(callback, "on_stage_end"):
                callback.on_stage_end(self.trainer, complete)

    def _write_log(self, miner: HardNegativeMiner, folder: str | None) -> None:
        """`svm_mining.csv` in the run's folder, a line for each training of an SVM."""
        if folder is None or self.trainer.fast_dev_run:
            return
        lines = [",".join(["class", *Training._fields[1:], "objective"])]
        for row in miner.log:
            values = [self.model.class_names[row.label - 1], *row[1:], row.objective]
            lines.append(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))
        write_beside(Path(folder) / "svm_mining.csv", "\n".join(lines) + "\n")

    def say(self, text: str) -> None:
        """Once, whatever the number of ranks."""
        if self.first:
            print(text, flush=True)
