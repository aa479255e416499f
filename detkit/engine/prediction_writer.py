"""Writes what a Trainer predicts, in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from detkit.data.datamodule import DataModule
from detkit.data.images import ImageDataset
from detkit.engine.module import TrainableModule
from detkit.engine.predictions import NAME, STOPPED, PredictionFiles, without_drawings
from detkit.errors import ConfigError, DataError
from detkit.signals import SIGNALS, Stopped
from detkit.types import Batch, Detections


class PredictionWriter(BasePredictionWriter):
    """Writes the detections of each image into files.

    A run that is stopped writes what is done, to `predictions.stopped.json` and the like.

    Args:
        files: what is written, and where.
    """

    def __init__(self, files: PredictionFiles) -> None:
        super().__init__(write_interval="batch")
        self.files = files

    def setup(self, trainer: Trainer, pl_module: TrainableModule, stage: str) -> None:
        """Refuse an output that cannot be written or is not detkit's own, and leave its drawings out of the images."""
        super().setup(trainer, pl_module, stage)
        # Ids are those of the file that is predicted on: the training set's may number the same classes otherwise.
        data = trainer.datamodule if isinstance(trainer.datamodule, DataModule) else None
        ids = (data.category_ids_of("test") if data else None) or pl_module.category_ids
        self.files.check(pl_module.class_names, ids)
        if data is not None:
            data.skip_unreadable = self.files.skips_unreadable
        images = getattr(trainer.datamodule, "images", None)
        if isinstance(images, ImageDataset):
            images.inputs = without_drawings(images.inputs, trainer.datamodule.path)

    def on_predict_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        first = str(self.files.begin()) if trainer.is_global_zero else ""
        parts = Path(trainer.strategy.broadcast(first))
        if not trainer.is_global_zero:
            self.files.begin(parts, trainer.global_rank)

    def on_predict_batch_start(self, *_: object) -> None:
        SIGNALS.begin_item()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: TrainableModule,
        prediction: list[Detections | None],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for sample, detections in zip(batch, prediction, strict=True):
            image_id = sample["image_id"]
            if detections is None or "error" in sample:
                self.files.write_error(image_id, sample["error"])
                continue
            height, width = sample["image"].shape[-2:]
            pixels = sample["image"].permute(1, 2, 0).cpu().numpy() if self.files.needs_pixels else None
            self.files.write(image_id, sample.get("file") or str(image_id), (width, height), detections, pixels)
        if trainer.strategy.reduce_boolean_decision(SIGNALS.received is not None, all=False):
            raise Stopped

    def on_predict_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        """Join the parts of all processes."""
        self._publish(trainer, NAME)
        SIGNALS.waits = False
        if SIGNALS.received is not None:  # after the last image
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: TrainableModule, exception: BaseException) -> None:
        if not self.files.is_open:
            return
        try:
            # An image that cannot be read ends one process only, and the others would be waited for.
            if isinstance(exception, Stopped) or (isinstance(exception, DataError) and trainer.world_size == 1):
                self._publish(trainer, STOPPED)
        finally:
            with suppress(ConfigError):
                self.files.close()
            if trainer.is_global_zero:  # which has joined the parts
                self.files.discard()

    def _publish(self, trainer: Trainer, stem: str) -> None:
        self.files.close()
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            self.files.join(stem, trainer.world_size)
