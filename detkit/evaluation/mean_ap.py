"""Mean average precision by a named protocol, batch by batch and on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from detkit.evaluation.evaluation_set import EvaluationSet, merge
from detkit.evaluation.image_metric import ImageMetric, collect
from detkit.evaluation.protocol import Protocol


class MeanAveragePrecision(ImageMetric):
    """mAP of detections; `update` with each batch, `compute` at the end, `reset` before the next.

    Args:
        protocol: "coco" (COCOeval), "voc07" (11 points) or "voc10" (area under the curve).
        class_names: the classes without background, in the order of their labels; labels beyond them are refused.
            None: those of the labels that occur.
        iou_thresholds, recall_thresholds, max_detections, area_ranges, hit_rule, difficult: of the protocol, where
            they differ from its own; see `Protocol`.
        process_group: the ranks that evaluate together; None for all.

    Attributes:
        evaluated: what the last `compute` counted; None after a `reset`.

    Raises:
        ConfigError: an unknown protocol, or a setting that it does not have.
    """

    merge = staticmethod(merge)

    def __init__(
        self,
        protocol: str = "coco",
        class_names: Sequence[str] | None = None,
        iou_thresholds: Sequence[float] | None = None,
        recall_thresholds: Sequence[float] | None = None,
        max_detections: Sequence[int] | None = None,
        area_ranges: Mapping[str, Sequence[float]] | None = None,
        hit_rule: str | None = None,
        difficult: str = "ignore",
        process_group: Any | None = None,
    ) -> None:
        self.protocol = Protocol(
            protocol, iou_thresholds, recall_thresholds, max_detections, area_ranges, hit_rule, difficult
        )
        super().__init__(class_names, process_group)
        self.evaluated: EvaluationSet | None = None

    def update(self, detections: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Take in a batch: Detections and Samples, image by image.

        Of a Sample, `boxes` and `labels` are needed; `difficult`, `crowd`, `area` and `image_id` may be missing. An
        image_id that was seen before does not count again.

        Raises:
            DataError: with the image's id, for fields that are missing, of unequal length or not finite, and for
                labels outside 1..K; then nothing of the batch is kept.
        """
        self.parts.append(collect(detections, targets, self.num_classes))

    def compute(self) -> dict[str, Any]:
        """The numbers of all ranks' images, under torchmetrics' names; float64 on the CPU, NaN for nothing to count.

        Each rank has to call it. The numbers are those of `Protocol.evaluate`, and: classes, int64 (K,), the labels
        that the vectors are in the order of; map_by_class, the AP by class name; protocol, in words; num_images that
        were counted.
        """
        self.evaluated = self.gathered()
        labels, dense = self._classes(self.evaluated)
        result = self.protocol.evaluate(dense, len(labels))
        numbers = {
            name: value if isinstance(value, int) else torch.as_tensor(value, dtype=torch.float64)
            for name, value in result.items()
        }
        names = [str(label) for label in labels] if self.class_names is None else self.class_names
        return numbers | {
            "classes": torch.tensor(labels, dtype=torch.int64),
            "map_by_class": dict(zip(names, result["map_per_class"].tolist(), strict=True)),
            "num_images": len(self.evaluated),
            "protocol": self.protocol.description,
        }

    def reset(self) -> None:
        super().reset()
        self.evaluated = None

    def _classes(self, evaluated: EvaluationSet) -> tuple[list[int], EvaluationSet]:
        """The labels that are evaluated, and the set with these labels as 1..K."""
        if self.num_classes is not None:
            return list(range(1, self.num_classes + 1)), evaluated
        labels = np.union1d(evaluated.labels, evaluated.detected_labels)
        position = {name: np.searchsorted(labels, getattr(evaluated, name)) for name in ("labels", "detected_labels")}
        dense = replace(evaluated, **{name: (rows + 1).astype(np.int32) for name, rows in position.items()})
        return labels.tolist(), dense
