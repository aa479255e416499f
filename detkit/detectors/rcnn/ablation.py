"""Softmax or SVMs, with or without box regressors: the mAP of each, from one reading of the features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from detkit.errors import CheckpointError
from detkit.evaluation import MeanAveragePrecision
from detkit.heads import SetLimit, Variant

if TYPE_CHECKING:
    from detkit.detectors.base import Batch
    from detkit.detectors.rcnn.model import RCNN


class Ablation:
    """A metric for each of the ways in which a trained `RCNN` can detect (the paper's table 2).

    That of the model's own variant is the model's own metric.

    Args:
        model: all of whose variants are compared.
        max_per_set: see `SetLimit`; None: no limit.
    """

    def __init__(self, model: RCNN, max_per_set: int | None = None) -> None:
        self.model, self.variants = model, model.roi_heads.variants
        self.metrics: dict[Variant, MeanAveragePrecision] = {
            variant: MeanAveragePrecision(model.metric.protocol.name, model.class_names) for variant in self.variants
        }
        self.metrics[model.roi_heads.variant] = model.metric
        self.limits: dict[Variant, SetLimit] = {}
        if max_per_set is not None:
            self.limits = {variant: SetLimit(model.num_classes, max_per_set) for variant in self.variants}
        self._held: dict[Variant, list[dict[str, Any]]] = {variant: [] for variant in self.variants}
        self._samples: list[dict[str, Any]] = []

    def update(self, batch: Batch) -> None:
        """Take in a batch."""
        found = self.model.detect_variants(batch, self.variants, limits=self.limits)
        for variant, detections in zip(self.variants, found, strict=True):
            if self.limits:
                self._held[variant] += [{k: v.cpu() for k, v in one.items()} for one in detections]
            else:
                self.metrics[variant].update(detections, batch)
        if self.limits:
            self._samples += [{k: v for k, v in one.items() if k not in ("image", "proposals")} for one in batch]

    def finish(self) -> list[dict[str, Any]]:
        """Plain numbers of each variant, and whether it is the model's.

        ``map`` and ``map_50`` (NaN where the protocol has none); and what is new in it brings in map, NaN where there
        is nothing to compare with: ``svm_gain`` over the softmax with the same boxes, ``box_gain`` over the same
        classifier without box regressors. The model's own metric is not reset.
        """
        for variant, limit in self.limits.items():
            self.metrics[variant].update(limit.keep(self._held.pop(variant)), self._samples)
        results = {variant: metric.compute() for variant, metric in self.metrics.items()}
        numbers = {v: {k: float(found.get(k, math.nan)) for k in ("map", "map_50")} for v, found in results.items()}
        rows: list[dict[str, Any]] = []
        for variant, own in numbers.items():
            row = {"variant": str(variant), **own}
            for name, plainer in (
                ("svm_gain", variant._replace(classifier="softmax")),
                ("box_gain", variant._replace(box_regression=False)),
            ):
                there = plainer != variant and plainer in numbers
                row[name] = own["map"] - numbers[plainer]["map"] if there else math.nan
            rows.append({**row, "used": variant == self.model.roi_heads.variant})
        return rows


class AblationMixin:
    """The hooks by which a test compares all that the weights can do, for `RCNN`."""

    _insists = False

    def on_use_override(self, changed: dict[str, Any]) -> None:
        """Options given for a test, a validation or a prediction, that differ from the checkpoint's."""
        self._insists = bool({"classifier", "box_regression"} & set(changed))

    def on_validation_start(self) -> None:
        """Say so where something is asked for that was not trained."""
        if self.trainer.state.fn == "validate":
            self._say_variant()

    def on_predict_start(self) -> None:
        """Say so where something is asked for that was not trained."""
        self._say_variant()

    def _say_variant(self) -> None:
        asked = Variant(self.roi_heads.settings.classifier, self.roi_heads.settings.box_regression)
        if asked == self.roi_heads.variant:
            return
        if self._insists:
            svm = asked.classifier != self.roi_heads.variant.classifier
            option, lacks = ("classifier svm", "SVMs") if svm else ("box_regression true", "box regressors")
            raise CheckpointError(
                f"this checkpoint has no {lacks}; train them: detkit fit --ckpt_path RUN --model.{option}"
            )
        self.print(f"asked for {asked}; what is trained is used: {self.roi_heads.variant}")

    def on_test_start(self) -> None:
        """Compare all that the weights can do, which costs next to nothing beside the features."""
        self._say_variant()
        self.ablation = Ablation(self, self.max_per_set)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Detections of each variant for its metric."""
        self.ablation.update(batch)

    def on_test_epoch_end(self) -> None:
        """Log the metric; keep those of the other variants beside it."""
        rows = self.ablation.finish()
        super().on_test_epoch_end()
        if len(rows) > 1:
            self.last_metrics["ablation"] = rows
