"""An exported detector as a LightningModule, for `detkit predict` and `detkit test`."""

from __future__ import annotations

from os import PathLike
from typing import Any

from detkit.deploy.runtime import ExportedModel, open_without_proposals
from detkit.deploy.tensors import detect_samples
from detkit.detectors.base import Detector
from detkit.errors import ConfigError
from detkit.features.preprocessing import ImageSettings, Preprocessing
from detkit.types import Batch, Detections


class ExportedDetector(Detector):
    """Detects by an `ExportedModel`; it has nothing to learn.

    Args:
        class_names: those of the file.
        path: the file.
        shared: arguments of `Detector`.
    """

    def __init__(self, class_names: list[str], *, path: str, **shared: Any) -> None:
        super().__init__(class_names, Preprocessing(ImageSettings()), **shared)
        self.model = ExportedModel(path)

    def encode(self, batch: Batch) -> None:
        """Nothing: the graph is one."""

    def detect(self, batch: Batch, encoded: None = None) -> list[Detections]:
        """Detections of each image, one image at a time."""
        return detect_samples(self.model.detect, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        """Count the detections; an exported detector has no losses."""
        found = self.detect(batch)
        self.metric.update(found, batch)
        return found

    def on_fit_start(self) -> None:
        raise ConfigError(f"{self.model.path}: an exported detector does not learn; fit from its checkpoint")


def exported_checkpoint(path: str | PathLike[str]) -> dict[str, Any]:
    """An exported file as a checkpoint of ours (see `detkit.engine.checkpoints.restore`), without weights.

    Raises:
        CheckpointError, ConfigError: as `open_without_proposals`.
    """
    description = open_without_proposals(path).description
    arguments = {
        "class_names": description.class_names,
        "category_ids": description.category_ids,
        "path": str(path),
    }
    name = f"{ExportedDetector.__module__}.{ExportedDetector.__qualname__}"
    return {"detkit": {"class": name, "exported": True}, "state_dict": {}, "hyper_parameters": arguments}
