"""The objects of a detection data set, cut out as R-CNN cuts out its proposals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from detkit.classification.datamodule import ClassificationDataModule, Examples
from detkit.data.annotations import Annotations
from detkit.data.datamodule import DetectionDataModule
from detkit.errors import ConfigError, DataError
from detkit.features.preprocessing import IMAGENET_MEAN
from detkit.features.warping import crop_geometry, warp

#: Bytes of crops that a process keeps, so as not to read their images in every epoch; where there are more, none is.
KEPT = 256 * 2**20
#: R-CNN's context in pixels, and the side of the crops it is meant for (papers.md 2.1).
CONTEXT, CONTEXT_SIDE = 16, 227


class ObjectExamples(Examples):
    """The boxes of a split as images of their own; crowds and difficult objects are left out.

    `labels`, (K + 1,) int64, is the class of each label of the annotations, of which 0 is not used; for the other
    arguments see `ObjectCrops`.
    """

    def __init__(self, annotations: Annotations, labels: np.ndarray, crop_size: int, context: int, mode: str) -> None:
        self.annotations = annotations
        self.crop_size = crop_size
        self.context = context
        self.mode = mode
        self.rows = np.flatnonzero(~annotations.difficult & ~annotations.crowd)
        self.images = np.searchsorted(annotations.offsets, self.rows, side="right") - 1
        self.labels = labels[annotations.labels[self.rows]]
        self._kept: np.ndarray | None = None
        self._known = np.zeros(len(self.rows), bool)

    def image(self, index: int) -> np.ndarray:
        """The crop; what lies outside the image has the colour of the mean."""
        image = int(self.images[index])
        if len(self) * 3 * self.crop_size**2 > KEPT:
            return self._cut(image, self.rows[index : index + 1])[0]
        if self._kept is None:  # not before: it need not go along to workers
            self._kept = np.zeros((len(self), self.crop_size, self.crop_size, 3), np.uint8)
        if not self._known[index]:
            first, last = np.searchsorted(self.images, [image, image + 1])
            self._kept[first:last] = self._cut(image, self.rows[first:last])
            self._known[first:last] = True
        return self._kept[index].copy()

    def _cut(self, image: int, rows: np.ndarray) -> np.ndarray:
        """Some of an image's boxes, uint8 (n, S, S, 3)."""
        annotations = self.annotations
        pixels = torch.from_numpy(annotations.image(image)).permute(2, 0, 1)
        mean = torch.tensor(IMAGENET_MEAN).mul(255).view(3, 1, 1)
        boxes = torch.from_numpy(annotations.boxes[rows])
        crops = warp(pixels.float() - mean, boxes, self.crop_size, self.context, self.mode)
        return (crops + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    def image_id(self, index: int) -> str:
        """Such as 000012#3: the third box of image 000012."""
        image = int(self.images[index])
        number = int(self.rows[index] - self.annotations.offsets[image]) + 1
        return f"{self.annotations.image_id(image)}#{number}"


class ObjectCrops(ClassificationDataModule):
    """The objects of a detection data set, each cut out with some context and warped to a square.

    Args:
        source: the detection data set, such as {class_path: VOC, init_args: {path: data/VOCdevkit}}. What it says of
            batches, workers and transforms does not count.
        crop_size: pixels a side of a crop; the model's.
        context: pixels of the crop on each side of the box; None takes R-CNN's 16 of 227, in proportion.
        mode: warp stretches each axis on its own, square takes the smallest square around the box.
        shared: see ClassificationDataModule. Without class_names the classes are those of the source, in its order.
    """

    def __init__(
        self,
        source: DetectionDataModule,
        crop_size: int = 32,
        context: int | None = None,
        mode: str = "warp",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.source = source
        self.crop_size = crop_size
        self.mode = mode
        self.context = round(CONTEXT * crop_size / CONTEXT_SIDE) if context is None else context
        crop_geometry(torch.zeros(0, 4), (1, 1), crop_size, self.context, mode)  # raises where they do not fit
        if not self.class_names:
            if not source.class_names:
                raise ConfigError(f"ObjectCrops needs a source with objects; {type(source).__name__} has no classes")
            self._set_classes(source.class_names, source.category_ids)

    def prepare_data(self) -> None:
        """What the source prepares."""
        self.source.prepare_data()

    @property
    def test_split(self) -> str:
        """The source's."""
        return self.source.test_split

    def read(self, split: str) -> Examples | None:
        """The objects of a split; DataError if the source has a class that is not among class_names."""
        annotations = self.source.annotations(split)
        if annotations is None:
            return None
        unknown = [name for name in self.source.class_names if name not in self.class_names]
        if unknown:
            raise DataError(
                f"ObjectCrops: {', '.join(unknown)} of {type(self.source).__name__} is no class; the classes are "
                f"{', '.join(self.class_names)}"
            )
        labels = np.array([0, *(self.class_names.index(name) + 1 for name in self.source.class_names)], np.int64)
        return ObjectExamples(annotations, labels, self.crop_size, self.context, self.mode)
