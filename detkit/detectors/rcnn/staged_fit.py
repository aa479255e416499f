"""The hooks by which a fit of R-CNN goes through its stages; `detkit.detectors.rcnn.stages` has what each does."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from detkit.data.datamodule import DetectionDataModule
from detkit.detectors.rcnn.fit_features import FEATURES_DEPEND_ON, FitFeatures
from detkit.detectors.rcnn.stages import FINE_TUNING, Stages
from detkit.errors import ConfigError

#: The model's options that the stages after fine-tuning depend on.
LEARNT_WITH = {
    *(set(FEATURES_DEPEND_ON) - {"feature_budget"}),
    *("max_proposals", "svm_c", "svm_positive_weight", "svm_negative_iou", "svm_passes", "box_lambda"),
}


class StagesMixin:
    """The hooks by which a fit goes through the stages, for `RCNN`."""

    stage: str = FINE_TUNING
    #: A name for the fit and all that go on from its checkpoints, by which they know their features on disk.
    run_id: str = ""
    #: Of this fit's training split, from its start on; see `RegionFeatures`.
    region_counts: tuple[int, int, int] | None = None
    _learn_again = False

    def on_fit_start(self) -> None:
        """Refuse what the later stages cannot learn from, or keep, before the first stage begins."""
        super().on_fit_start()
        if self.trainer.ckpt_path is None or not self.run_id:
            self.run_id = self.trainer.strategy.broadcast(uuid4().hex[:8])
        self.region_counts = None
        if not Stages(self).todo():
            return
        if not isinstance(self.trainer.datamodule, DetectionDataModule):
            raise ConfigError(
                "R-CNN's SVMs and box regressors learn from one of detkit's data sets: fit with trainer.fit(model, "
                "datamodule), or set classifier: softmax and box_regression: false"
            )
        if not self.trainer.fast_dev_run:
            self.region_counts = FitFeatures(self).check_room()

    def on_train_start(self) -> None:
        """More fine-tuning makes what was learnt on the features stale."""
        super().on_train_start()
        self.stage = FINE_TUNING
        for part in (self.roi_heads.svms, self.roi_heads.box_regressors):
            part.trained.fill_(False)

    def on_fit_end(self) -> None:
        """Go through the stages that are left. Lightning calls it after the last epoch, also where none was left."""
        super().on_fit_end()
        if not self.trainer.interrupted:
            Stages(self).run()

    def on_resume_override(self, changed: dict[str, Any]) -> None:
        """Other numbers for the SVMs or the box regressors: these learn again, fine-tuning goes on where it was."""
        super().on_resume_override(changed)
        self._learn_again = any(name in changed for name in LEARNT_WITH)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stage and the run's name."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["detkit"] |= {"stage": self.stage, "run": self.run_id}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on behind the stage that was saved."""
        super().on_load_checkpoint(checkpoint)
        self.run_id = checkpoint["detkit"].get("run", "")
        self.stage = self.stage_behind(checkpoint) or FINE_TUNING

    def stage_behind(self, checkpoint: dict[str, Any]) -> str:
        """The stage after fine-tuning that a checkpoint ends; "" if it ends none, or if they are to learn again."""
        stage = checkpoint["detkit"]["stage"]
        return "" if self._learn_again or stage == FINE_TUNING else stage
