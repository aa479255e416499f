"""Softmax or SVMs, with or without box regressors: the mAP of each, from one computation of the features."""

from __future__ import annotations

import math
from typing import Any

from detkit.evaluation import MeanAveragePrecision
from detkit.heads import SetLimit, Variant
from detkit.types import Batch, Detections


class Ablation:
    """A metric for each of the ways in which a trained `RCNN` can detect (the paper's table 2).

    The metric of the variant that is ``used`` is the model's own; ``max_per_set``: see `SetLimit`.
    """

    def __init__(
        self, variants: list[Variant], used: Variant, metric: MeanAveragePrecision, max_per_set: int | None = None
    ) -> None:
        self.variants = variants
        self.used = used
        self.metrics = {
            variant: metric if variant == used else MeanAveragePrecision(metric.protocol.name, metric.class_names)
            for variant in variants
        }
        self.limits: dict[Variant, SetLimit] = {}
        if max_per_set is not None:
            self.limits = {variant: SetLimit(len(metric.class_names), max_per_set) for variant in variants}
        self._pending: dict[Variant, list[Detections]] = {variant: [] for variant in variants}
        self._samples: Batch = []

    def update(self, batch: Batch, detections: list[list[Detections]]) -> None:
        """Add a batch and its detections by each of `variants`, which must have updated the `limits`."""
        for variant, images in zip(self.variants, detections, strict=True):
            if self.limits:
                self._pending[variant] += [Detections({k: v.cpu() for k, v in image.items()}) for image in images]
            else:
                self.metrics[variant].update(images, batch)
        if self.limits:
            unused = ("image", "proposals")
            kept: Any = [{k: v for k, v in sample.items() if k not in unused} for sample in batch]
            self._samples += kept

    def finish(self) -> list[dict[str, Any]]:
        """The results of each variant, as plain values. The model's own metric is not reset.

        ``variant``, ``used`` for the model's own, ``map``, ``map_50``; gains in map: ``svm_gain`` over the softmax with
        the same boxes, ``box_gain`` over the same classifier without regressors. NaN where there is no such number.
        """
        for variant, limit in self.limits.items():
            self.metrics[variant].update(limit.apply(self._pending.pop(variant)), self._samples)
        results = {}
        for variant, metric in self.metrics.items():
            computed = metric.compute()
            results[variant] = {name: float(computed.get(name, math.nan)) for name in ("map", "map_50")}

        def gain(variant: Variant, baseline: Variant) -> float:
            if baseline == variant or baseline not in results:
                return math.nan
            return results[variant]["map"] - results[baseline]["map"]

        return [
            {
                "variant": str(variant),
                **numbers,
                "svm_gain": gain(variant, variant._replace(classifier="softmax")),
                "box_gain": gain(variant, variant._replace(box_regression=False)),
                "used": variant == self.used,
            }
            for variant, numbers in results.items()
        ]
