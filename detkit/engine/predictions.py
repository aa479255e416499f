"""Predictions, written to disk while they are made: COCO's results format, and drawn images on request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from detkit.data.datamodule import DataModule
from detkit.data.image_io import open_image
from detkit.data.images import ImageDataset
from detkit.engine.checkpoints import run_folder
from detkit.engine.module import TrainableModule
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, discard, overwrite_note, publish, stage, writing
from detkit.signals import SIGNALS, Stopped
from detkit.types import Batch, Detections, Sample

FILES = ("predictions.json", "predictions.stopped.json")
DRAWN = "predictions"  # the folder of the drawings
MAX_STEM = 230  # bytes; file systems take names of 255, of which a number and ".jpg" are some
COMMENT = b"drawn by detkit"  # in their JPEG files


def coco_results(image_id: str | int, detections: Detections, category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The detections of one image as rows of COCO's results format.

    Args:
        image_id: as in the data set.
        detections: boxes (N, 4) x1 y1 x2 y2 in pixels, scores (N,), labels (N,) in 1..K.
        category_ids: the data set's own ids, in the order of the labels (label 1 first).

    Yields:
        image_id, category_id, bbox (x, y, width, height in pixels), score.
    """
    boxes, scores, labels = (detections[k].detach().cpu() for k in ("boxes", "scores", "labels"))
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    for box, score, label in zip(_decimals(sides), _decimals(scores), labels.tolist(), strict=True):
        yield {"image_id": image_id, "category_id": int(category_ids[label - 1]), "bbox": box, "score": score}


def _decimals(values: Tensor) -> Any:
    """float32 as the shortest decimals that are read back as the same numbers, in lists of the tensor's shape."""
    if values.ndim > 1:
        return [_decimals(row) for row in values]
    return [float(str(value)) for value in values.float().numpy()]


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.json`, a list in COCO's results format; each process its part, which the first one joins.

    A run that is stopped, or meets an image that cannot be read, writes `predictions.stopped.json`, of the images that
    are done.

    Args:
        output: the folder to write into; the folder of the checkpoint's run by default.
        draw: write each image with its detections drawn into `predictions/`.
        score_threshold: least score drawn, in 0..1; the JSON file holds all detections.
    """

    def __init__(self, output: str | None = None, draw: bool = False, score_threshold: float = 0.5) -> None:
        super().__init__(write_interval="batch")
        if not 0 <= score_threshold <= 1:
            raise ConfigError(f"predictions.score_threshold is {score_threshold}; scores go from 0 to 1")
        self.output, self.draw, self.score_threshold = output, draw, score_threshold
        self.folder = Path(output) if output else Path()
        self.written: Path | None = None
        self._file: Any = None

    def use_run(self, checkpoint: Path) -> None:
        """Write into the folder of the checkpoint's run, unless the user names another."""
        if not self.output:
            self.folder = run_folder(checkpoint)

    def setup(self, trainer: Trainer, pl_module: TrainableModule, stage: str) -> None:
        """Refuse an output that cannot be written or is not detkit's own, and leave its drawings out of the images."""
        super().setup(trainer, pl_module, stage)
        check_output(self.folder)
        # Ids are those of the file that is predicted on: the training set's may number the same classes otherwise.
        own = trainer.datamodule.category_ids_of("test") if isinstance(trainer.datamodule, DataModule) else []
        self._category_ids = own or pl_module.category_ids
        drawn = self.folder / DRAWN
        for path in [drawn, *drawn.glob("*")] if self.draw else []:
            if path.is_symlink() or (path.is_file() and not is_drawing(path)):
                raise ConfigError(
                    f"{path}: was not drawn by detkit and might be overwritten; choose another folder by "
                    "--predictions.output"
                )
        images = getattr(trainer.datamodule, "images", None)
        if isinstance(images, ImageDataset):
            paths = {file: Path(images.root, file) for file in images.files}
            images.files = [file for file, path in paths.items() if path.parent.name != DRAWN or not is_drawing(path)]
            if not images.files:
                raise DataError(f"{images.root}: has no image that detkit did not draw itself")

    def on_predict_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._drawn: set[str] = set()
        # Detections of this process, and those of them that are drawn.
        self.num_detections = 0
        self.num_drawn = 0
        self._parts = Path(trainer.strategy.broadcast(str(stage(self.folder)) if trainer.is_global_zero else ""))
        self._file = self._part(trainer.global_rank).open("w", encoding="utf-8")

    def on_predict_batch_start(self, *_: Any) -> None:
        SIGNALS.begin_item()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: TrainableModule,
        prediction: list[Detections],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for sample, detections in zip(batch, prediction, strict=True):
            image_id = sample["image_id"]
            rows = list(coco_results(image_id, detections, self._category_ids))
            with writing(self.folder):
                self._file.write(json.dumps([image_id, rows]) + "\n")
                if self.draw:
                    self.num_detections += len(detections["scores"])
                    self.num_drawn += int((detections["scores"] >= self.score_threshold).sum())
                    self._draw(sample, detections, pl_module.class_names)
        if trainer.strategy.reduce_boolean_decision(SIGNALS.received is not None, all=False):
            raise Stopped

    def on_predict_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        """Join the parts of all processes into `predictions.json`."""
        self._publish(trainer, FILES[0])
        SIGNALS.waits = False
        if SIGNALS.received is not None:  # after the last image
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: TrainableModule, exception: BaseException) -> None:
        if self._file is None:
            return
        try:
            # An image that cannot be read ends one process only, and the others would be waited for.
            if isinstance(exception, Stopped) or (isinstance(exception, DataError) and trainer.world_size == 1):
                self._publish(trainer, FILES[1])
        finally:
            with suppress(OSError):
                self._file.close()
            if trainer.is_global_zero:  # which has joined the parts
                discard(self._parts)

    def _publish(self, trainer: Trainer, name: str) -> None:
        with writing(self.folder):
            self._file.close()
            trainer.strategy.barrier("predictions")
            if not trainer.is_global_zero:
                return
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            with (self._parts / name).open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.write("[")  # lone surrogates, as undecodable file names contain them, become JSON's escapes
                separator = "\n"
                for row in _rows(parts):
                    out.write(separator + json.dumps(row, ensure_ascii=False))
                    separator = ",\n"
                out.write("\n]\n")
            for part in parts:
                part.unlink()
            drawn = {path.name for path in (self._parts / DRAWN).glob("*")}
        self.overwrite_note = overwrite_note(publish(self._parts, self.folder), "--predictions.output")
        self.written = self.folder / name
        if self.draw and name == FILES[0]:  # drawings of other images are of other predictions
            for path in (self.folder / DRAWN).glob("*"):
                if path.name not in drawn and is_drawing(path):
                    path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self._parts / f"{rank}.part"

    def _draw(self, sample: Sample, detections: Detections, class_names: list[str]) -> None:
        import detkit

        picture = detkit.draw(
            sample["image"].cpu(), detections, class_names=class_names, score_threshold=self.score_threshold
        )
        path = self._parts / DRAWN / self._name(sample["image_id"])
        path.parent.mkdir(exist_ok=True)
        picture.save(path, quality=90, comment=COMMENT)

    def _name(self, image_id: str | int) -> str:
        # Image ids come from annotation files of any origin: only plain characters reach the file system.
        stem = re.sub(r"[^\w.-]+", "_", re.sub(r"(?i)\.jpe?g$", "", str(image_id))).lstrip(".") or "image"
        stem = stem.encode()[:MAX_STEM].decode(errors="ignore")
        name, number = stem, 1
        while name in self._drawn:
            number += 1
            name = f"{stem}-{number}"
        self._drawn.add(name)
        return f"{name}.jpg"


def is_drawing(path: Path) -> bool:
    """Whether a file was drawn by a `PredictionWriter`."""
    try:
        with open_image(path) as picture:
            return picture.info.get("comment") == COMMENT
    except DataError:
        return False


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of all processes, each image once: samplers repeat images so that every process has as many."""
    written: set[str | int] = set()
    for part in parts:
        in_part = set()
        with part.open(encoding="utf-8") as lines:
            for line in lines:
                image_id, rows = json.loads(line)
                if image_id not in written:
                    in_part.add(image_id)
                    yield from rows
        written |= in_part
