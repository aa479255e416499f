"""Metrics over images: how a batch is checked and kept, and how several processes put together what they kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from detkit.errors import ConfigError, DataError
from detkit.evaluation.evaluation_set import EvaluationSet, offsets_of


class ImageMetric:
    """A metric that keeps small arrays of each image, on the CPU, until it is asked for its numbers.

    A metric implements `update`, which appends to `parts`, `compute`, and `merge`; the length of a part is its number
    of images. `compute` begins with `gathered`: a collective call, which each rank has to make.

    Args:
        class_names: the classes without background, in the order of their labels; None: those of the labels that
            occur.
        process_group: the ranks that evaluate together; None for all.

    Attributes:
        parts: what this rank has kept.
        num_classes: K, the largest label; None for any.

    Raises:
        ConfigError: class_names are a single text, or have a name twice.
    """

    def __init__(self, class_names: Sequence[str] | None = None, process_group: Any | None = None) -> None:
        if class_names is not None and (isinstance(class_names, str) or len(set(class_names)) != len(class_names)):
            raise ConfigError(f"class_names must be a list of different names, not {class_names!r}")
        self.class_names = None if class_names is None else list(class_names)
        self.num_classes = None if class_names is None else len(class_names)
        self.process_group = process_group
        self.parts: list[Any] = []

    @staticmethod
    def merge(parts: Sequence[Any]) -> Any:
        """One part with each image once, by its id, in an order that does not depend on who saw which image."""
        raise NotImplementedError("a metric over images must implement merge")

    def reset(self) -> None:
        """Start again, without images."""
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
    none = np.zeros(len(truth.boxes), bool)
    return EvaluationSet(
        image_ids=ids,
        boxes=truth.boxes,
        labels=truth.labels(num_classes),
        difficult=truth.values("difficult", none).astype(bool),
        crowd=truth.values("crowd", none).astype(bool),
        area=truth.values("area", truth.boxes[:, 2] * truth.boxes[:, 3]),
        object_offsets=truth.offsets,
        detected_boxes=found.boxes,
        scores=found.values("scores"),
        detected_labels=found.labels(num_classes),
        detection_offsets=found.offsets,
    )


class _Fields:
    """The fields of B images, each field of all images joined; `boxes` are (N, 4) float64, x y width height."""

    def __init__(self, images: Images, owner: str, ids: Sequence[Any]) -> None:
        self.images, self.owner, self.ids = images, owner, ids
        parts = [self._tensor(index, "boxes", "of shape (0, 4) for none") for index in range(len(images))]
        for index, boxes in enumerate(parts):
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise self._error(index, f"'boxes' of shape {tuple(boxes.shape)}: give (N, 4), and (0, 4) for none")
        self.offsets = offsets_of(np.array([len(boxes) for boxes in parts], np.int64))
        self.boxes = self._joined("boxes", parts).reshape(-1, 4)
        self.boxes[:, 2:] -= self.boxes[:, :2]

    def labels(self, num_classes: int | None) -> np.ndarray:
        """(N,) int32, checked."""
        labels = self.values("labels")
        limit = LARGEST_LABEL if num_classes is None else num_classes
        wrong = (labels < 1) | (labels > limit) | (labels % 1 != 0)
        if wrong.any():
            row = int(wrong.argmax())
            raise self._row_error(row, f"the label {labels[row]:g}: labels are 1..{limit}, 0 is background")
        return labels.astype(np.int32)

    def values(self, key: str, default: np.ndarray | None = None) -> np.ndarray:
        """(N,) float64; an image without them has its part of `default` (N,)."""
        if default is not None and not any(key in image for image in self.images):
            return default
        parts = []
        for index, count in enumerate(np.diff(self.offsets).tolist()):
            if key not in self.images[index] and default is not None:
                parts.append(torch.from_numpy(default[self.offsets[index] : self.offsets[index + 1]]))
                continue
            parts.append(self._tensor(index, key, "one value for each box"))
            shape = tuple(parts[-1].shape)
            if shape != (count,):
                raise self._error(index, f"{count} boxes but {key!r} of shape {shape}: give ({count},)")
        return self._joined(key, parts)

    def _tensor(self, index: int, key: str, hint: str) -> Tensor:
        if key not in self.images[index]:
            raise self._error(index, f"no {key!r}: give it, {hint}")
        return torch.as_tensor(self.images[index][key])

    def _joined(self, key: str, parts: Sequence[Tensor]) -> np.ndarray:
        """All images' values as float64, which holds every float and every integer that occurs; finite."""
        if not parts:
            return np.zeros(0)
        with torch.no_grad():
            on_one_device = len({part.device for part in parts}) == 1
            joined = torch.cat(list(parts) if on_one_device else [part.cpu() for part in parts])
        values = joined.cpu().to(torch.float64).numpy()
        finite = np.isfinite(values)
        if not finite.all():
            row = int(finite.reshape(len(values), -1).all(axis=1).argmin())
            raise self._row_error(row, f"{key!r} that are not finite: look for NaN or infinity in the model")
        return values

    def _row_error(self, row: int, text: str) -> DataError:
        return self._error(int(np.searchsorted(self.offsets, row, side="right")) - 1, text)

    def _error(self, index: int, text: str) -> DataError:
        return DataError(f"{image_name(self.ids[index])}: {self.owner} has {text}")


def image_name(image_id: Any) -> str:
    """What an error calls an image."""
    return "an image without image_id" if image_id is None else f"image {image_id!r}"


def _image_id(target: Mapping[str, Any]) -> Any:
    image_id = target.get("image_id")
    if isinstance(image_id, np.generic) or (isinstance(image_id, Tensor) and image_id.numel() == 1):
        image_id = image_id.item()
    if image_id is not None and type(image_id) not in (int, str):
        raise DataError(f"image_id must be a whole number or a text, not {image_id!r} ({type(image_id).__name__})")
    return image_id
