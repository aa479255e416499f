"""What every generation shares: one LightningModule with losses, detections and the metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit.detectors.field_lines import field_lines
from detkit.detectors.prediction import PredictionMixin
from detkit.engine.module import TrainableModule
from detkit.evaluation import EvaluationSet, MeanAveragePrecision
from detkit.features import ImageBatch, Preprocessing

Batch = list[dict[str, Any]]


class Detector(PredictionMixin, TrainableModule):
    """Base of R-CNN, Fast R-CNN and Faster R-CNN.

    A generation implements `encode` (one pass over the features), `losses` and `detect`; both take the result of
    `encode`, so that validation has losses and detections from one pass. Neither changes train or eval mode.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        preprocessing: what becomes of the images.
        train_on_difficult: learn difficult objects too; otherwise they are neither object nor background.
        protocol: of the mAP in validation and test: coco, voc07 or voc10.
        shared: arguments of `TrainableModule`.
    """

    def __init__(
        self,
        class_names: list[str],
        preprocessing: Preprocessing,
        train_on_difficult: bool = False,
        protocol: str = "coco",
        **shared: Any,
    ) -> None:
        super().__init__(class_names, **shared)
        self.preprocessing = preprocessing
        self.metric = MeanAveragePrecision(protocol=protocol, class_names=self.class_names)
        self.last_evaluated: EvaluationSet | None = None
        self.train_on_difficult = train_on_difficult
        #: What the samplers of the last call of `losses` met; see `RegionProposalNetwork.losses`.
        self.health: dict[str, Tensor] = {}

    # -- what a generation implements ----------------------------------------------------------

    def encode(self, batch: Batch) -> Any:
        """One pass over the features of a batch, to be given to `losses` and `detect`."""
        raise NotImplementedError(f"{type(self).__name__} must implement encode")

    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        """Losses by name; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must implement losses")

    def detect(self, batch: Batch, encoded: Any = None) -> list[dict[str, Tensor]]:
        """Detections of each image, in its own pixels, best first."""
        raise NotImplementedError(f"{type(self).__name__} must implement detect")

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of uint8 images (3, H_i, W_i)."""
        return self.detect([{"image": image} for image in images])

    # -- shared parts --------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> ImageBatch:
        """Resize, normalise and batch the images, on the module's device."""
        return self.preprocessing([sample["image"] for sample in batch])

    def targets(self, batch: Batch, images: ImageBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """What is to be found: boxes and labels in the batch's pixels, and regions where background does not count.

        Crowds, and difficult objects unless ``train_on_difficult``, are neither positive nor negative.
        """
        boxes, labels, regions = [], [], []
        for i, sample in enumerate(batch):
            ignored = sample["crowd"] if self.train_on_difficult else sample["crowd"] | sample["difficult"]
            scaled = images.to_batch(sample["boxes"], i)
            boxes.append(scaled[~ignored])
            labels.append(sample["labels"][~ignored])
            regions.append(scaled[ignored])
        device = images.tensor.device
        boxes, labels, regions = ([t.to(device, non_blocking=True) for t in kind] for kind in (boxes, labels, regions))
        return boxes, labels, regions

    # -- Lightning -----------------------------------------------------------------------------

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the images only: annotations are small, and sorting them on the host spares waits for the device."""
        return [{**sample, "image": sample["image"].to(device, non_blocking=True)} for sample in batch]

    def on_fit_start(self) -> None:
        """Print what learns, and what the maps see."""
        super().on_fit_start()
        if self.trainer.is_global_zero:
            for line in field_lines(self):
                self.print(line)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the losses of one batch."""
        losses = self.losses(batch, self.encode(batch))
        self._guard.watch(losses, batch)
        # Losses of parts that are fixed for now (alternating training) are only logged.
        total = torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum()
        # Lightning keeps only what it is given in the steps it logs; handing it over costs time in every one.
        if self.trainer._logger_connector.should_update_logs:
            values = {f"train/{name}": value.detach() for name, value in (losses | self.health).items()}
            self.log_dict(values, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses and detections from one pass."""
        encoded = self.encode(batch)
        losses = self.losses(batch, encoded)
        self._guard.watch(losses, batch)
        values = {f"val/{name}": value for name, value in losses.items()}
        values["val/loss"] = torch.stack(list(losses.values())).sum()
        self.log_dict(values, batch_size=len(batch), sync_dist=True)
        self.metric.update(self.detect(batch, encoded), batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Detections for the metric."""
        self.metric.update(self.detect(batch), batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Tensor]]:
        """Detections of each image."""
        return self.detect(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metric."""
        self._guard.check()
        self._log_metric("val")

    def on_test_epoch_end(self) -> None:
        """Log the metric."""
        self._log_metric("test")

    def _log_metric(self, stage: str) -> None:
        result = self.metric.compute()
        # For the report of a test; validation only wants the numbers.
        self.last_evaluated = self.metric.evaluated if stage == "test" else None
        self.metric.reset()
        scalars = {k: v for k, v in result.items() if isinstance(v, Tensor) and v.ndim == 0}
        self.last_metrics = {
            **{k: v.item() for k, v in scalars.items()},
            "map_per_class": result["map_by_class"],
            **{k: result[k] for k in ("num_images", "num_over_limit", "protocol")},
            "max_detections": (self.metric.protocol.max_detections or [None])[-1],
        }
        values = {f"{stage}/{k}": v.float() for k, v in scalars.items()}
        # Every rank has computed the same numbers from all images.
        self.log_dict(values, prog_bar=False, rank_zero_only=False, sync_dist=False)
