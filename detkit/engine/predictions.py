"""Predictions, written to disk while they are made: in one of several formats, with drawings and crops on request."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from detkit.data.datamodule import DataModule
from detkit.data.image_io import open_image
from detkit.data.images import ImageDataset
from detkit.detections import plain_fields
from detkit.engine.module import TrainableModule
from detkit.engine.prediction_formats import FORMATS, MARK, Classes, Predicted
from detkit.errors import ConfigError, DataError
from detkit.files import check_output, discard, overwrite_note, publish, stage, writing
from detkit.heads.selection import Selection
from detkit.settings import check_choice
from detkit.signals import SIGNALS, Stopped
from detkit.types import Batch, Detections, Sample

NAME, STOPPED = "predictions", "predictions.stopped"
PICTURES = ("predictions", "crops")  # the folders of the drawings and the crops
SHOWN = 0.5  # least score of what people look at, unless they say another
MAX_STEM = 220  # bytes; file systems take names of 255, of which numbers and ".jpg" are some
COMMENT = b"drawn by detkit"  # in their JPEG files
FormatName = Literal["coco", "voc", "yolo", "csv", "label_studio"]


class PredictionWriter(BasePredictionWriter):
    """Writes the detections of each image, by default to `predictions.json` in COCO's results format.

    Each process writes its part, and the first one joins them. A run that is stopped writes what is done, to
    `predictions.stopped.json` and the like.

    Args:
        output: the folder to write into; the folder of the checkpoint's run by default.
        format: coco (predictions.json), csv (predictions.csv), yolo (a text file an image, in predictions_yolo/), voc
            (comp4 files, in predictions_voc/) or label_studio (pre-annotations, in predictions_label_studio.json).
        classes: names of the classes to keep; all by default.
        score_threshold: least score, in 0..1. By default all that the detector gives are written, and those from 0.5
            are drawn, cropped and given to Label Studio.
        agnostic_nms: suppress across classes too, at an IoU of 0.5.
        draw: write each image with its detections drawn into `predictions/`.
        crops: write what is within each box into `crops/CLASS/`.
        on_bad_image: what to do with an image that cannot be read: "skip", and list it at the end, with exit code 3; or
            "error", to stop there.

    Attributes:
        skipped: image id -> why it could not be read.
        num_images, num_written: how many images were read, and how many detections of them were written.
    """

    def __init__(
        self,
        output: str | None = None,
        format: FormatName = "coco",
        classes: list[str] | None = None,
        score_threshold: float | None = None,
        agnostic_nms: bool = False,
        draw: bool = False,
        crops: bool = False,
        on_bad_image: Literal["error", "skip"] = "skip",
    ) -> None:
        super().__init__(write_interval="batch")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ConfigError(f"predictions.score_threshold is {score_threshold}; scores go from 0 to 1")
        check_choice("predictions.format", format, tuple(FORMATS))
        check_choice("predictions.on_bad_image", on_bad_image, ("error", "skip"))
        shown = SHOWN if score_threshold is None else score_threshold
        least = shown if format == "label_studio" else score_threshold or 0.0
        self.selection = Selection(least, classes, agnostic_nms)
        self.output, self.draw, self.crops, self.shown_from = output, draw, crops, shown
        self.format, self.on_bad_image = FORMATS[format], on_bad_image
        self.folder = Path(output) if output else Path()
        self.written: Path | None = None
        self.skipped: dict[str | int, str] = {}
        self.num_images = self.num_written = 0
        self._file: Any = None

    def use_folder(self, folder: Path) -> None:
        """Write into this folder, the checkpoint's, unless the user names another."""
        if not self.output:
            self.folder = folder

    @property
    def files(self) -> list[Path]:
        """What may be written, besides pictures."""
        return [self.folder / f"{name}{self.format.suffix}" for name in (NAME, STOPPED)]

    def setup(self, trainer: Trainer, pl_module: TrainableModule, stage: str) -> None:
        """Refuse an output that cannot be written or is not detkit's own, and leave its drawings out of the images."""
        super().setup(trainer, pl_module, stage)
        check_output(self.folder)
        self.selection.labels(pl_module.class_names)
        # Ids are those of the file that is predicted on: the training set's may number the same classes otherwise.
        data = trainer.datamodule if isinstance(trainer.datamodule, DataModule) else None
        self._classes = Classes(
            pl_module.class_names, (data.category_ids_of("test") if data else None) or pl_module.category_ids
        )
        if data is not None:
            data.skip_unreadable = self.on_bad_image == "skip"
        option = "choose another folder by --predictions.output"
        for folder in self._picture_folders():
            for path in [folder, *folder.rglob("*")]:
                if path.is_symlink() or (path.is_file() and not is_drawing(path)):
                    raise ConfigError(f"{path}: was not drawn by detkit and might be overwritten; {option}")
        for path in self.files if self.format.is_folder else []:
            if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
                raise ConfigError(f"{path}: was not written by detkit and would be replaced; {option}")
        images = getattr(trainer.datamodule, "images", None)
        if isinstance(images, ImageDataset):
            ours = [bool({*Path(each.path).parts} & {*PICTURES}) and is_drawing(each.path) for each in images.inputs]
            images.inputs = [each for each, drawn in zip(images.inputs, ours, strict=True) if not drawn]
            if not images.inputs:
                raise DataError(f"{trainer.datamodule.path}: has no image that detkit did not draw itself")

    def _picture_folders(self) -> list[Path]:
        return [self.folder / name for name, wanted in zip(PICTURES, (self.draw, self.crops), strict=True) if wanted]

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
        prediction: list[Detections | None],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for sample, detections in zip(batch, prediction, strict=True):
            with writing(self.folder):
                content: Any = sample.get("error")
                if content is None and detections is not None:
                    chosen = self.selection(detections, pl_module.class_names)
                    content = _to_plain(sample, chosen)
                    self._write_pictures(sample, chosen, pl_module.class_names)
                self._file.write(json.dumps([sample["image_id"], content]) + "\n")
        if trainer.strategy.reduce_boolean_decision(SIGNALS.received is not None, all=False):
            raise Stopped

    def on_predict_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        """Join the parts of all processes."""
        self._publish(trainer, NAME)
        SIGNALS.waits = False
        if SIGNALS.received is not None:  # after the last image
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: TrainableModule, exception: BaseException) -> None:
        if self._file is None:
            return
        try:
            # An image that cannot be read ends one process only, and the others would be waited for.
            if isinstance(exception, Stopped) or (isinstance(exception, DataError) and trainer.world_size == 1):
                self._publish(trainer, STOPPED)
        finally:
            with suppress(OSError):
                self._file.close()
            if trainer.is_global_zero:  # which has joined the parts
                discard(self._parts)

    def _publish(self, trainer: Trainer, stem: str) -> None:
        with writing(self.folder):
            self._file.close()
            trainer.strategy.barrier("predictions")
            if not trainer.is_global_zero:
                return
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            name = f"{stem}{self.format.suffix}"
            self.format.write(self._images(parts), self._parts / name, self._classes)
            for part in parts:
                part.unlink()
            drawn = {path.relative_to(self._parts) for folder in PICTURES for path in (self._parts / folder).rglob("*")}
            replaced = self.format.is_folder and (self.folder / name / MARK).is_file()
            if replaced:  # its files may be of other images
                shutil.rmtree(self.folder / name)
        replaced |= publish(self._parts, self.folder)
        self.overwrite_note = overwrite_note(replaced, "--output")
        self.written = self.folder / name
        # Drawings of other images are of other predictions.
        for folder in self._picture_folders() if stem == NAME else []:
            for path in folder.rglob("*"):
                if path.is_file() and path.relative_to(self.folder) not in drawn and is_drawing(path):
                    path.unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self._parts / f"{rank}.part"

    def _images(self, parts: Sequence[Path]) -> Iterator[Predicted]:
        """The images of all processes, each once: samplers repeat images so that every process has as many."""
        written: set[str | int] = set()
        for part in parts:
            with part.open(encoding="utf-8") as lines:
                for line in lines:
                    image_id, content = json.loads(line)
                    if image_id in written:
                        continue
                    written.add(image_id)
                    if isinstance(content, str):
                        self.skipped[image_id] = content
                    else:
                        found = Predicted(image_id, *content)
                        self.num_images += 1
                        self.num_written += len(found.scores)
                        yield found

    # -- pictures --------------------------------------------------------------------------------

    def _write_pictures(self, sample: Sample, detections: Detections, class_names: list[str]) -> None:
        if not (self.draw or self.crops):
            return
        import detkit

        name = self._name(sample["image_id"])
        image = sample["image"].cpu()
        self.num_detections += len(detections["scores"])
        self.num_drawn += int((detections["scores"] >= self.shown_from).sum())
        if self.draw:
            picture = detkit.draw(image, detections, class_names=class_names, score_threshold=self.shown_from)
            self._save(picture, PICTURES[0], f"{name}.jpg")
        if self.crops:
            rows = zip(*(detections[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
            for number, (box, score, label) in enumerate(rows, 1):
                if score >= self.shown_from:
                    self._save(crop(image, box), PICTURES[1], _plain(class_names[label - 1]), f"{name}-{number}.jpg")

    def _save(self, picture: Any, *parts: str) -> None:
        path = self._parts.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90, comment=COMMENT)

    def _name(self, image_id: str | int) -> str:
        """The stem of an image's pictures, which no other image has, whatever the case of its letters."""
        stem = _plain(re.sub(r"(?i)\.jpe?g$", "", str(image_id)))
        stem = stem.encode()[:MAX_STEM].decode(errors="ignore")
        name, number = stem, 1
        while name.casefold() in self._drawn:  # upper and lower case are one to Windows and macOS
            number += 1
            name = f"{stem}-{number}"
        self._drawn.add(name.casefold())
        return name


def crop(image: Tensor, box: Sequence[float]) -> Any:
    """The pixels that a box (x1, y1, x2, y2) touches of a uint8 image (3, H, W), at least one, as a PIL image."""
    from PIL import Image

    height, width = image.shape[-2:]
    x1, y1 = (min(max(int(value), 0), side - 1) for value, side in zip(box[:2], (width, height), strict=True))
    x2, y2 = max(-int(-box[2] // 1), x1 + 1), max(-int(-box[3] // 1), y1 + 1)
    return Image.fromarray(image[:, y1:y2, x1:x2].permute(1, 2, 0).contiguous().numpy())


def is_drawing(path: str | Path) -> bool:
    """Whether a file is a picture of a `PredictionWriter`."""
    try:
        with open_image(path) as picture:
            return picture.info.get("comment") == COMMENT
    except DataError:
        return False


def _plain(name: str) -> str:
    # Image ids come from annotation files of any origin: only plain characters reach the file system.
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "image"


def _to_plain(sample: Sample, detections: Detections) -> list[Any]:
    """file, size, boxes, scores and labels as `Predicted` has them."""
    height, width = sample["image"].shape[-2:]
    file = sample.get("file") or str(sample["image_id"])
    return [file, (width, height), *plain_fields(detections)]
