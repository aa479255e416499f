"""Mean average precision as a torchmetrics.Metric, by a named protocol.

Unlike torchmetrics' own: the numbers are COCOeval's to the last digit, VOC's protocols are there, a NaN
is refused, nothing to count is NaN and never -1, results for each class are vectors even for
one class, and ranks may have seen unequally many images, none, or the same twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from detkit.errors import ConfigError, DataError

from . import coco, voc
from .records import ImageRecord, make_record, unique_images

PROTOCOLS = ("coco", "voc07", "voc10")


class MeanAveragePrecision(Metric):
    """mAP of detections; `update` with each batch, `compute` at the end, `reset` before the next.

    protocol: "coco" (COCOeval), "voc07" (11 points) or "voc10" (area under the curve).
    class_names: the classes without background, in the order of their labels. All of them are
        evaluated, and labels beyond them refused. None: the labels that come.
    iou_threshold: what a VOC hit must exceed, 0.5 if None; COCO has its own ten.

    Raises ConfigError for an unknown protocol, or `iou_threshold` with "coco".
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True
    images: list[ImageRecord]

    def __init__(
        self,
        protocol: str = "coco",
        class_names: Sequence[str] | None = None,
        iou_threshold: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if protocol not in PROTOCOLS:
            raise ConfigError(f"unknown evaluation protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
        if protocol == "coco" and iou_threshold is not None:
            raise ConfigError("iou_threshold is for the protocols voc07 and voc10: coco averages over ten thresholds")
        self.protocol = protocol
        self.class_names = None if class_names is None else list(class_names)
        self.iou_threshold = 0.5 if iou_threshold is None else float(iou_threshold)
        self.add_state("images", default=[], dist_reduce_fx=None)
        #: Images that the last `compute` counted.
        self.num_images = 0

    @property
    def protocol_description(self) -> str:
        """What a number of this metric must be printed with."""
        if self.protocol == "coco":
            return (
                "COCO (AP at IoU 0.50:0.95, 101 points, at most 100 detections an image and class; "
                "crowd and difficult ignored)"
            )
        name, curve = ("VOC07", "11 points") if self.protocol == "voc07" else ("VOC10", "area under the curve")
        return f"{name} (AP at IoU > {self.iou_threshold:.2f}, {curve}; difficult and crowd ignored)"

    def update(self, detections: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Takes in a batch: Detections and Samples, image by image.

        Of a Sample, `boxes` and `labels` are needed; `difficult`, `crowd`, `area` and `image_id` may be
        missing. An image_id that was seen before does not count again.
        Raises DataError, with the image's id, for fields that are missing, of unequal length or not
        finite, and for labels outside 1..K; then nothing of the batch is kept.
        """
        if len(detections) != len(targets):
            raise DataError(f"{len(detections)} detections for {len(targets)} targets: give one of each an image")
        num_classes = None if self.class_names is None else len(self.class_names)
        records = [make_record(*pair, num_classes) for pair in zip(detections, targets, strict=True)]
        self.images.extend(records)

    def compute(self) -> dict[str, Tensor]:
        """The numbers, under torchmetrics' names; float64 on the CPU, NaN where there is nothing to count.

        coco: map, map_50, map_75, map_small, map_medium, map_large, mar_1, mar_10, mar_100, mar_small,
        mar_medium, mar_large, and for each class map_per_class and mar_100_per_class (K,).
        voc07, voc10: map, map_per_class and, at an iou_threshold of 0.5, map_50.
        All: classes, int64 (K,), the labels that the vectors are in the order of.
        """
        images = unique_images(self.images)
        self.num_images = len(images)
        labels = self._labels(images)
        if self.protocol == "coco":
            result = coco.evaluate(images, labels)
        else:
            average = voc.evaluate(images, labels, self.iou_threshold, eleven_points=self.protocol == "voc07")
            counted = average[~np.isnan(average)]
            mean = float(counted.mean()) if counted.size else float("nan")
            result = {"map": mean, "map_per_class": average}
            if self.iou_threshold == 0.5:
                result["map_50"] = mean
        tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in result.items()}
        return tensors | {"classes": torch.tensor(labels, dtype=torch.int64)}

    def _labels(self, images: Sequence[ImageRecord]) -> list[int]:
        if self.class_names is not None:
            return list(range(1, len(self.class_names) + 1))
        seen = [array for image in images for array in (image.labels, image.detected_labels)]
        return np.unique(np.concatenate(seen)).tolist() if seen else []

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Gathers the images of all ranks, as objects.

        Tensors would have to be equally many on each rank; objects need not be there at all. Every
        rank makes this same call, so that none waits for another forever.
        """
        group = process_group or self.process_group
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, list(self.images), group=group)
        self.images = unique_images(record for images in gathered for record in images)

    def _wrap_compute(self, compute: Callable) -> Callable:
        """torchmetrics' wrapping, but vectors of one class stay vectors."""
        wrapped = super()._wrap_compute(compute)

        def compute_vectors(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            result = wrapped(*args, **kwargs)
            return {k: v.reshape(-1) if k.endswith("per_class") or k == "classes" else v for k, v in result.items()}

        return compute_vectors

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> MeanAveragePrecision:
        """Nothing moves: the state is arrays on the CPU, wherever the model goes."""
        return self
