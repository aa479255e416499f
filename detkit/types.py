"""The types that every part of detkit shares: samples, batches, training targets, and detections."""

from __future__ import annotations

from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from detkit.detections import Detections as Detections


class Sample(TypedDict):
    """One image with its ground truth. All per-box fields have the same length N.

    Where there is no ground truth (`detkit predict`, `Detector.predict`) only ``image`` is there, with ``image_id``,
    ``file`` and ``path`` where they are known. Of an image to predict on that cannot be read, ``error`` is there in the
    place of ``image``.
    """

    #: uint8 (3, H, W), RGB, 0-255.
    image: NotRequired[Tensor]
    #: float32 (N, 4), x1 y1 x2 y2 in pixels, half-open; (0, 4) where there are none.
    boxes: NotRequired[Tensor]
    #: int64 (N,), from 1 to K; background is 0 and never among them.
    labels: NotRequired[Tensor]
    #: bool (N,): VOC's difficult objects.
    difficult: NotRequired[Tensor]
    #: bool (N,): COCO's crowds.
    crowd: NotRequired[Tensor]
    #: float32 (N,): the annotation's area in square pixels, or the box's.
    area: NotRequired[Tensor]
    #: The data set's own id.
    image_id: NotRequired[str | int]
    #: The image's name: its path below the folder of the data set, with "/".
    file: NotRequired[str]
    #: The image file.
    path: NotRequired[str]
    #: Why the image cannot be read.
    error: NotRequired[str]
    #: float32 (P, 4), best first, for the detectors whose proposals are given.
    proposals: NotRequired[Tensor]


#: Images differ in size, so a batch is a list.
Batch = list[Sample]


class Targets(NamedTuple):
    """What is to be found in each image of a batch of N, in the batch's pixels.

    boxes: N tensors (G_i, 4).
    labels: N tensors (G_i,), from 1 to K.
    ignore_boxes: N tensors (I_i, 4) in which background is not trained on: crowds and difficult objects.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    ignore_boxes: list[Tensor]


class Regions(NamedTuple):
    """Boxes of a batch of N images: those that are valid, one image after the other, then padding.

    boxes: (R, 4), in the batch's pixels.
    image: int64 (R,), the number of each one's image.
    valid: bool (R,); False for padding, which only fills the shape.
    """

    boxes: Tensor
    image: Tensor
    valid: Tensor

    @classmethod
    def of(cls, boxes: list[Tensor]) -> Regions:
        """The boxes (R_i, 4) of each image."""
        image = torch.cat([b.new_full((len(b),), i, dtype=torch.int64) for i, b in enumerate(boxes)])
        return cls(torch.cat(boxes), image, torch.ones_like(image, dtype=torch.bool))

    @property
    def rois(self) -> Tensor:
        """float32 (R, 5): the number of the image and the box, as RoI pooling takes them."""
        return torch.cat([self.image[:, None].to(self.boxes), self.boxes], dim=1).float()
