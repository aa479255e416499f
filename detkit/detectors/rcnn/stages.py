"""What a fit of R-CNN does after fine-tuning: features, linear SVMs, box regressors, and the comparison of all four.

Each stage ends with a checkpoint. A fit that goes on from it (`--ckpt_path last`) begins with the stage that was
stopped; of the features it has what is on the disk.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from detkit.detectors.rcnn.ablation import Ablation
from detkit.detectors.rcnn.fit_features import FitFeatures
from detkit.detectors.rcnn.region_features import RegionFeatures
from detkit.detectors.rcnn.region_learning import learn_boxes, learn_svms
from detkit.engine.callbacks import StageCheckpoint
from detkit.evaluation.tables import ablation_table
from detkit.files import write_beside
from detkit.heads import HardNegativeMiner, Training
from detkit.progress import Progress, duration

if TYPE_CHECKING:
    from detkit.detectors.rcnn.model import RCNN

#: In this order; a checkpoint says which of them it has behind it.
FINE_TUNING, SVMS, BOXES, COMPARISON = STAGES = ("fine-tuning", "SVMs", "box regressors", "comparison")


class Stages:
    """The stages after fine-tuning, on the trainer's device.

    Args:
        model: fine-tuned, within a fit that is at its end.
    """

    def __init__(self, model: RCNN) -> None:
        self.model, self.trainer, self.settings = model, model.trainer, model.stage_settings
        self.heads = model.roi_heads
        self.given = FitFeatures(model)
        self.first, self.say = self.given.first, self.given.say
        self.features: RegionFeatures | None = None

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
            self.given.let_go()
        for module, training in modes:
            module.training = training

    def _run(self, todo: list[str]) -> None:
        if todo != [COMPARISON]:
            self.features = self.given.fill()
        for stage in todo:
            if stage == COMPARISON:
                self.given.forget()
            {SVMS: self.svms, BOXES: self.boxes, COMPARISON: self.compare}[stage]()
            self.model.stage = stage
            self._checkpoint(complete=stage == COMPARISON)

    # -- the stages ----------------------------------------------------------------------------

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
                advice = "fine-tune longer, with a smaller lr where the loss stands still; raise svm_c (and svm_passes)"
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
        annotations = self.trainer.datamodule.annotations("val")
        if annotations is None or self.trainer.limit_val_batches == 0:
            return
        loader, model = self.trainer.datamodule.val_dataloader(), self.model
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

    def _share(self, module: torch.nn.Module, name: str) -> None:
        """What the first rank has learnt, for all, by way of a file: collective calls lose patience after a while."""
        if self.trainer.world_size == 1:
            return
        path = self.given.folder / f"{name}.learnt"
        if self.first:
            part = path.with_suffix(".part")
            torch.save({k: v.cpu() for k, v in module.state_dict().items()}, part)
            os.replace(part, path)
        self.given.wait(path.is_file)
        module.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        self.trainer.strategy.barrier(name)

    def _checkpoint(self, complete: bool) -> None:
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, StageCheckpoint):
                callback.save_stage(self.trainer, complete)

    def _write_log(self, miner: HardNegativeMiner, folder: str | None) -> None:
        """`svm_mining.csv` in the run's folder, a line for each training of an SVM."""
        if folder is None or self.trainer.fast_dev_run:
            return
        lines = [",".join(["class", *Training._fields[1:], "objective"])]
        for row in miner.log:
            values = [self.model.class_names[row.label - 1], *row[1:], row.objective]
            lines.append(",".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values))
        write_beside(Path(folder) / "svm_mining.csv", "\n".join(lines) + "\n")
