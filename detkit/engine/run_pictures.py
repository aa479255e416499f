"""Pictures in a run's folder: the first batches as the network sees them, and detections beside ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from detkit.drawing import SHORTER_SIDE, draw, make_sheet
from detkit.engine.module import TrainableModule
from detkit.engine.run_files import RunFileCallback, is_best, warn_on_error
from detkit.files import staged
from detkit.types import Batch, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN_BATCHES, PREDICTIONS = "train_batches.jpg", "val_predictions.jpg"
#: Pixels of a picture's longer side at most, pictures in a row, and quality of the JPEG.
LONGEST, COLUMNS, QUALITY = 480, 4, 85
CAPTION_HEIGHT, CAPTION_SIZE = 30, 16
#: Detections are drawn from the first of these scores that one of them has; early in a training all are low.
SCORES = (0.5, 0.3, 0.1, 0.05)


class TrainBatchPicture(RunFileCallback):
    """Draws the first images that a fit trains on, augmented and resized, with their boxes: `train_batches.jpg`.

    Ignored boxes (difficult objects, crowds) are white. The random state is as if nothing had been drawn.

    Args:
        count: images to draw.
        folder: as of `RunFileCallback`.
    """

    def __init__(self, count: int = 12, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        self.count = count
        self._pictures: list[Image] = []
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._pictures, self._is_done = [], not self.writes

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: TrainableModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._is_done:
            return
        self._is_done = True  # also after an error
        with warn_on_error(TRAIN_BATCHES):
            device = pl_module.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
                pl_module.on_train_batch_start(batch, batch_idx)  # seeds, so that sizes are drawn as in the step
                samples = pl_module.network_view(batch)
            self._pictures += [_draw_sample(sample, pl_module.class_names) for sample in samples]
            self._is_done = not samples or len(self._pictures) >= self.count
        if self._is_done or trainer.is_last_batch:
            self._save()

    def _save(self) -> None:
        self._is_done = True
        if self._pictures:
            with warn_on_error(TRAIN_BATCHES):
                _write(make_sheet(self._pictures[: self.count], COLUMNS), self.path(TRAIN_BATCHES))
        self._pictures = []


class PredictionPicture(RunFileCallback):
    """Draws images of the best validation, ground truth beside detections: `val_predictions.jpg`.

    It takes what the validation has detected, so it costs the drawing only. Detections are drawn from one of `SCORES`
    on, which the caption names. Of an R-CNN they are those of its fine-tuning, before the SVMs.

    Args:
        count: images to draw, spread over the validation set.
        folder: as of `RunFileCallback`.
    """

    def __init__(self, count: int = 8, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        self.count = count
        self._chosen: list[tuple[Sample, dict[str, Any]]] = []

    def on_validation_start(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        self._chosen = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: TrainableModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.writes or trainer.sanity_checking or not isinstance(outputs, list):
            return
        batches = max(int(min(sum(trainer.num_val_batches), 1e9)), 1)
        if batch_idx % max(batches // self.count, 1) == 0:
            few = -(-self.count // batches)  # of each batch
            pairs = zip(batch[:few], outputs[:few], strict=True)
            kept = [(_on_cpu(sample), _on_cpu(found)) for sample, found in pairs]
            self._chosen += kept[: self.count - len(self._chosen)]

    def on_validation_end(self, trainer: Trainer, pl_module: TrainableModule) -> None:
        chosen, self._chosen = self._chosen, []
        path = self.path(PREDICTIONS)
        if not chosen or not (is_best(trainer) or not path.is_file()):
            return
        with warn_on_error(PREDICTIONS):
            best = max((float(score) for _, found in chosen for score in found["scores"]), default=0.0)
            least = next((score for score in SCORES if best >= score), SCORES[-1])
            about = f"validation after epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
            right = "detections" if best >= least else "no detection"
            caption = f"{about}. Left: ground truth. Right: {right} with a score of {least:g} or more"
            pairs = [_draw_pair(sample, found, pl_module.class_names, least) for sample, found in chosen]
            _write(_with_caption(make_sheet(pairs, COLUMNS // 2), caption), path)


def _on_cpu(fields: Any) -> Any:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in fields.items()}


def _draw_sample(sample: Sample, class_names: Sequence[str]) -> Image:
    """An image with its objects in the colours of their classes, and ignored boxes in white."""
    ignored = sample["crowd"] | sample["difficult"]
    boxes = {"boxes": sample["boxes"][~ignored], "labels": sample["labels"][~ignored]}
    return _draw(sample["image"], boxes, {"boxes": sample["boxes"][ignored]}, class_names=class_names)


def _draw_pair(sample: Sample, found: dict[str, Any], class_names: Sequence[str], least: float) -> Image:
    shown = _draw(sample["image"], found, None, class_names=class_names, score_threshold=least)
    return make_sheet([_draw_sample(sample, class_names), shown], 2, gap=4)


def _draw(
    image: Tensor, *boxes: dict[str, Any] | None, class_names: Sequence[str], score_threshold: float = 0.0
) -> Image:
    """`draw` on the image in the size of the sheet, so that labels can be read there."""
    from PIL import Image as PILImage

    height, width = image.shape[1:]
    scale = min(SHORTER_SIDE / min(height, width), LONGEST / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = PILImage.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size)
    scaled: list[Any] = [None if each is None else {**each, "boxes": each["boxes"] * scale} for each in boxes]
    found, targets = (*scaled, None)[:2]
    picture = draw(small, found, targets, class_names, score_threshold)
    picture.thumbnail((LONGEST, LONGEST))  # of narrow images, which `draw` enlarges
    return picture


def _with_caption(sheet: Image, text: str) -> Image:
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(CAPTION_SIZE)
    width = max(sheet.width, round(font.getlength(text)) + 8)
    page = PILImage.new("RGB", (width, sheet.height + CAPTION_HEIGHT), "white")
    page.paste(sheet, (0, CAPTION_HEIGHT))
    ImageDraw.Draw(page).text((4, 4), text, fill="black", font=font)
    return page


def _write(picture: Image, path: Path) -> None:
    with staged(path.parent) as part:
        picture.save(part / path.name, quality=QUALITY)
