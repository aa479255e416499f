"""A detector and data sets of a few lines, so that the command line is tested without training one."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from detkit.engine.module import TrainableModule
from detkit.engine.optimization import OptimSettings
from detkit.evaluation import MeanAveragePrecision
from detkit.evaluation.image_metric import collect

SCORES = [0.1, 0.5, 0.3, 0.2]


class Model(TrainableModule):
    """Base, as `Detector` is."""


class Tiny(Model):
    """One weight matrix that is drawn towards noise; its mAP of epoch N is SCORES[N]."""

    protocol_description = "COCO, toy"

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
        optim: OptimSettings = OptimSettings(lr=0.1, schedule="constant", warmup_steps=0),
        width: int = 4,
        weights: str | None = None,
        window: tuple[int, int] = (3, 3),
        nan_map: bool = False,
    ) -> None:
        super().__init__(class_names, category_ids, optim)
        self.linear = torch.nn.Linear(4, width)
        self.metric = MeanAveragePrecision("coco", class_names)
        self.images = 0

    def on_fit_start(self) -> None:
        """Print nothing."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = (self.linear(torch.rand(2, 4)) - torch.rand(1)).square().mean()
        self.log("train/loss", loss, batch_size=2)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        score = float("nan") if self.hparams.nan_map else SCORES[min(self.current_epoch, 3)]
        self.log("val/map", score, batch_size=2)

    def on_validation_epoch_end(self) -> None:
        self._metrics()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.images += len(batch)

    def on_test_epoch_end(self) -> None:
        self._metrics()
        box = {"boxes": torch.tensor([[1.0, 2.0, 5.0, 9.0]]), "labels": torch.tensor([2])}
        self.last_evaluated = collect([{**box, "scores": torch.tensor([0.7])}], [{**box, "image_id": 0}], 2)

    def _metrics(self) -> None:
        per_class = dict.fromkeys(self.class_names, 0.25)
        self.last_metrics = {
            "map": 0.25,
            "map_large": float("nan"),
            "map_per_class": per_class,
            "num_images": self.images,
            "num_over_limit": 1234,
            "max_detections": 100,
            "protocol": "COCO, toy",
        }

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, torch.Tensor]]:
        boxes, scores = torch.tensor([[1.0, 2.0, 5.0, 9.0], [0.0, 0.0, 3.0, 3.0]]), torch.tensor([0.9, 0.2])
        return [{"boxes": boxes, "scores": scores, "labels": torch.tensor([2, 1])} for _ in batch]


class Other(Tiny):
    """Another model with the same options."""


class Data(L.LightningDataModule):
    """Base, as `DetectionDataModule` is."""

    test_split = "test"


class Numbers(Data):
    """Samples without content, category ids that are not contiguous."""

    def __init__(self, path: str = "nowhere", size: int = 4, class_names: list[str] | None = None) -> None:
        super().__init__()
        self.size = size
        self.class_names, self.category_ids = class_names or ["cat", "dog"], [3, 17]

    def annotations(self, split: str) -> None:
        return None

    def train_dataloader(self) -> DataLoader:
        image = torch.zeros(3, 12, 12, dtype=torch.uint8)
        return DataLoader([{"image": image, "image_id": i} for i in range(self.size)], batch_size=2, collate_fn=list)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Photos(Data):
    """Images without classes of their own."""

    def __init__(self, path: str, class_names: list[str] | None = None) -> None:
        super().__init__()
        self.class_names, self.category_ids = class_names or [], []

    def predict_dataloader(self) -> DataLoader:
        image = torch.zeros(3, 12, 12, dtype=torch.uint8)
        names = ["a.jpg", "b/a.jpg", "../../escape.png"]
        return DataLoader([{"image": image, "image_id": n} for n in names], batch_size=2, collate_fn=list)
