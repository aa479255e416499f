"""Fast R-CNN (Girshick 2015): features once an image, and every proposal pooled from them, classified and refined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detkit.data.datamodule import DetectionDataModule
from detkit.data.transforms import HorizontalFlip
from detkit.detectors.base import Encoded, RegionDetector
from detkit.detectors.proposals import GivenProposals, ProposalSettings
from detkit.errors import ConfigError
from detkit.features import PyramidFeatures, PyramidPooler, distinct_rois, nearest_scale
from detkit.proposals import Proposals
from detkit.settings import check_choice, check_range
from detkit.training import box_statistics
from detkit.types import Batch

NORMALIZATIONS = ("per_class", "fixed")


class FastRCNN(RegionDetector):
    """Fast R-CNN, trained jointly on its two losses; its proposals are given (see `GivenProposals`).

    The defaults are the ``modern`` preset; ``configs/fast_rcnn`` holds those of the paper.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        proposals: which proposals, and how many of them.
        box_normalization: per_class (the regression targets' mean and deviation over the training set, as in the
            paper) or fixed (``box_weights``).
        dedup_stride: in test, of proposals that are equal when rounded to so many pixels one is used; 16 in the
            paper; null: all are used.
        test_sizes: in test, several shorter sides of which each region is read from the one where its area is nearest
            to 224 x 224; [480, 576, 688, 864, 1200] in the paper; null: ``min_size``.
        test_max_size: limit of the longer side in such a test; 2000 in the paper.
        shared: arguments of `RegionDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        *,
        proposals: ProposalSettings = ProposalSettings(),
        box_normalization: str = "fixed",
        dedup_stride: int | None = None,
        test_sizes: list[int] | None = None,
        test_max_size: int = 2000,
        **shared: Any,
    ) -> None:
        check_choice("box_normalization", box_normalization, NORMALIZATIONS)
        check_range("dedup_stride", dedup_stride, 1)
        super().__init__(class_names, **shared)
        self.given = GivenProposals(proposals)
        self.dedup_stride = dedup_stride
        if box_normalization == "per_class":
            self.roi_heads.normalize_per_class(self.num_classes)
        self.test_scales = nn.ModuleList(self.preprocessing.at(size, test_max_size) for size in test_sizes or ())
        if test_sizes:
            pooler: Any = PyramidPooler(self.roi_heads.pooler)
            self.roi_heads.pooler = pooler

    def encode(self, batch: Batch) -> Encoded:
        """Backbone over a batch of samples (only ``image`` is read), in test at each of ``test_sizes``."""
        if self.training or not self.test_scales:
            return super().encode(batch)
        scales = [scale([sample["image"] for sample in batch]) for scale in self.test_scales]
        # (S, N, 4): (width, height, width, height)
        sizes = torch.tensor([scale.sizes for scale in scales], dtype=torch.float32).flip(-1).repeat(1, 1, 2)
        maps = [self.backbone(scale.tensor) for scale in scales]
        return Encoded(scales[0], PyramidFeatures(maps, sizes / sizes[0]))

    def propose(self, batch: Batch, encoded: Encoded) -> list[Proposals]:
        """The samples' ``proposals``, the best of them and, in test, each once."""
        proposals = self.given.of_batch(batch, self.training)
        return [self._propose_one(boxes, encoded, i) for i, boxes in enumerate(proposals)]

    def _propose_one(self, boxes: Tensor, encoded: Encoded, index: int) -> Proposals:
        boxes = encoded.images.to_batch(boxes, index)
        if self.dedup_stride is not None and not self.training:
            scale, at_scale = None, boxes
            if isinstance(encoded.features, PyramidFeatures):
                scale, at_scale = nearest_scale(boxes, encoded.features.factors[:, index])
            boxes = boxes[distinct_rois(at_scale, self.dedup_stride, scale)]
        boxes = boxes.to(encoded.images.tensor.device, non_blocking=True)
        return Proposals(boxes, torch.ones_like(boxes[:, 0]))

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        self.given.restore(checkpoint)

    def prepare_data(self) -> None:
        self.given.prepare_data(self.trainer)

    def teardown(self, stage: str) -> None:
        self.given.teardown(self.trainer)

    def setup(self, stage: str) -> None:
        """Give the data set's samples their proposals; before a fit, measure the regression targets."""
        self.given.setup(self.trainer, stage)
        data = self.trainer.datamodule
        normalizer = self.roi_heads.normalizer
        # Weights that were trained with statistics keep them; a run that goes on finds its own in the checkpoint.
        if stage == "fit" and normalizer is not None and not normalizer.known and self.trainer.ckpt_path is None:
            known = isinstance(data, DetectionDataModule) and data.annotations("train") is not None
            if known and (self.trainer.fast_dev_run or "train" in data.proposals):
                self.measure_boxes(
                    self._training_set(data), isinstance(data.dataset("train").transform, HorizontalFlip)
                )
            else:
                raise ConfigError(
                    "box_normalization: per_class needs the statistics of the training set: fit with one of detkit's "
                    "data sets, call measure_boxes before, or set box_normalization: fixed"
                )

    def measure_boxes(self, images: Iterable[tuple[Tensor, Tensor, Tensor]], mirrored: bool = False) -> None:
        """Set the regression targets' statistics (``box_normalization: per_class``).

        Args:
            images: of each image of the training set proposals (P, 4), ground-truth boxes (G, 4) and labels (G,).
            mirrored: see `box_statistics`.
        """
        iou = self.roi_heads.settings.foreground_iou
        self.roi_heads.normalizer.set(box_statistics(images, self.num_classes, iou, mirrored))

    def _training_set(self, data: DetectionDataModule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        annotations, proposals = data.annotations("train"), data.proposals.get("train")
        count = len(annotations)
        if proposals is None:  # fast_dev_run: so few images serve
            count = min(count, int(self.trainer.fast_dev_run) * data.batch_size)
            proposals = self.given.of_first(annotations, count)
        for i in range(count):
            truth = {name: torch.from_numpy(value) for name, value in annotations.fields(i).items()}
            learnt = ~(truth["crowd"] if self.train_on_difficult else truth["crowd"] | truth["difficult"])
            boxes = torch.as_tensor(proposals[annotations.image_id(i)], dtype=torch.float32).reshape(-1, 4)
            yield boxes[: self.given.settings.max_boxes[0]], truth["boxes"][learnt], truth["labels"][learnt]
