"""Metrics over images: how a batch is checked and kept, and how several processes put together what they kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from detkit.errors import DataError
from detkit.evaluation.evaluation_set import EvaluationSet


class ImageMetric:
    """A metric that keeps small arrays of each image, on the CPU, until it is asked for its numbers.

    A metric implements `update`, which appends to `parts`, `compute`, and `merge`; the length of a part is its number
    of images. `compute` begins with `gathered`: a collective call, which each rank has to make.

    Args:
        process_group: the ranks that evaluate together; None for all.

    Attributes:
        parts: what this rank has kept.
    """

    def __init__(self, process_group: Any | None = None) -> None:
        self.process_group = process_group
        self.parts: list[Any] = []

    @staticmethod
    def merge(parts: Sequence[Any]) -> Any:
        """One part with each image once, by its id, in an order that does not depend on who saw which image."""
        raise NotImplementedError("a metric over images must implement merge")

    def reset(self) -> None:
        """Forget all images."""
        self.parts = []

    def gathered(self) -> Any:
        """The images of all ranks, each once; warns if this process has met one more than once.

        They are gathered as objects, since ranks may have seen unequally many. PyTorch carries the bytes on the device
        that the backend wants (for NCCL the current CUDA device, which Lightning and torchrun scripts set).
        """
        merged = self.merge(self.parts)
        repeated = sum(map(len, self.parts)) - len(merged)
        if repeated:
            rank_zero_warn(
                f"{type(self).__name__}: {repeated} images came again and were not counted again; if they are other "
                "images, give each an image_id of its own"
            )
        if not (dist.is_available() and dist.is_initialized()):
            return merged
        ranks: list[Any] = [None] * dist.get_world_size(self.process_group)
        dist.all_gather_object(ranks, merged, group=self.process_group)
        return self.merge(ranks)


Images = Sequence[Mapping[str, Any]]
LARGEST_LABEL = int(np.iinfo(np.int32).max)  # labels are kept as int32


def collect(detections: Images, targets: Images, num_classes: int | None) -> EvaluationSet:
    """The set of a batch of B images, from their Detections and their Samples.

    Args:
        detections: B dicts of boxes (N, 4) x1 y1 x2 y2, scores and labels (N,).
        targets: B dicts of boxes, labels and, where they are known, difficult, crowd, area and image_id.
        num_classes: K, the largest label; None for any.

    Raises:
        DataError: with the image's id, where a field is missing, has another length than its boxes, is not
            finite, or holds a label outside 1..num_classes (up to the largest int32 for None).
    """
    if len(detections) != len(targets):
        raise DataError(f"{len(detections)} detections for {len(targets)} targets: give one of each an image")
    ids = [_image_id(target) for target in targets]
    truth = _Fields(targets, "target", ids)
    found = _Fields(detections, "detections", ids)
    boxes = truth.boxes()  # first: they set the offsets
    detected_boxes = found.boxes()
    return EvaluationSet(
        image_ids=ids,
        boxes=boxes,
        labels=truth.labels(num_classes),
        difficult=truth.values("difficult", _zeros).astype(bool),
        crowd=truth.values("crowd", _zeros).astype(bool),
        area=truth.values("area", _area),
        object_offsets=truth.offsets,
        detected_boxes=detected_boxes,
        scores=found.values("scores"),
        detected_labels=found.labels(num_classes),
        detection_offsets=found.offsets,
    )


class _Fields:
    """The fields of B images, each field of all images joined; `boxes` must be asked for first."""

    def __init__(self, images: Images, owner: str, ids: Sequence[Any]) -> None:
        self.images = images
        self.owner = owner
        self.ids = ids
        self.offsets = np.zeros(len(images) + 1, np.int64)

    def boxes(self) -> np.ndarray:
        """(N, 4) float64, x y width height, from x1 y1 x2 y2; sets `offsets`."""
        parts = []
        for index, image in enumerate(self.images):
            boxes = self._tensor(image, index, "boxes", "of shape (0, 4) for none")
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise self._error(index, f"'boxes' of shape {tuple(boxes.shape)}: give (N, 4), and (0, 4) for none")
            self.offsets[index + 1] = self.offsets[index] + len(boxes)
            parts.append(boxes)
        boxes = self._joined("boxes", parts).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def labels(self, num_classes: int | None) -> np.ndarray:
        """(N,) int32, checked."""
        labels = self.values("labels")
        limit = LARGEST_LABEL if num_classes is None else num_classes
        wrong = (labels < 1) | (labels > limit) | (labels % 1 != 0)
        if wrong.any():
            row = int(wrong.argmax())
            text = f"the label {labels[row]:g}: labels are 1..{limit}, 0 is background"
            raise self._error(self._image_of(row), text)
        return labels.astype(np.int32)

    def values(self, key: str, default: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """(N,) float64; `default` makes those of an image that has none, from its boxes."""
        parts = []
        for index, image in enumerate(self.images):
            count = int(self.offsets[index + 1] - self.offsets[index])
            if key not in image and default is not None:
                parts.append(default(torch.as_tensor(image["boxes"])))
                continue
            values = self._tensor(image, index, key, "one value for each box")
            if values.shape != (count,):
                text = f"{count} boxes but {key!r} of shape {tuple(values.shape)}: give ({count},)"
                raise self._error(index, text)
            parts.append(values)
        return self._joined(key, parts)

    def _tensor(self, image: Mapping[str, Any], index: int, key: str, hint: str) -> Tensor:
        if key not in image:
            raise self._error(index, f"no {key!r}: give it, {hint}")
        return torch.as_tensor(image[key])

    def _joined(self, key: str, parts: Sequence[Tensor]) -> np.ndarray:
        """All images' values as float64, which holds every float and every integer that occurs; finite."""
        if not parts:
            return np.zeros(0)
        with torch.no_grad():
            on_one_device = len({part.device for part in parts}) == 1
            joined = torch.cat(parts if on_one_device else [part.cpu() for part in parts])
        values = joined.cpu().to(torch.float64).numpy()
        finite = np.isfinite(values)
        if not finite.all():
            row = int(np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))[0])
            raise self._error(
                self._image_of(row), f"{key!r} that are not finite: look for NaN or infinity in the model"
            )
        return values

    def _image_of(self, row: int) -> int:
        return int(np.searchsorted(self.offsets, row, side="right")) - 1

    def _error(self, index: int, text: str) -> DataError:
        image_id = self.ids[index]
        where = "an image without image_id" if image_id is None else f"image {image_id!r}"
        return DataError(f"{where}: {self.owner} has {text}")


def _image_id(target: Mapping[str, Any]) -> Any:
    image_id = target.get("image_id")
    if isinstance(image_id, np.generic) or (isinstance(image_id, Tensor) and image_id.numel() == 1):
        image_id = image_id.item()
    if image_id is not None and type(image_id) not in (int, str):
        raise DataError(f"image_id must be a whole number or a text, not {image_id!r} ({type(image_id).__name__})")
    return image_id


def _zeros(boxes: Tensor) -> Tensor:
    return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)


def _area(boxes: Tensor) -> Tensor:
    boxes = boxes.detach().to(torch.float64)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
