"""What Fast and Faster R-CNN share: all but where the proposals come from.

Features are computed once for an image; every proposal is pooled from them, classified and refined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.detectors.base import Batch, Detector
from detkit.features import Backbone, ImageBatch, MapSettings, Preprocessing, RoIPooler, build_backbone
from detkit.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from detkit.heads import BoxPredictor, RegionClassifier, RegionSettings, build_box_head
from detkit.proposals import Proposals

#: Boxes and labels to be found, and regions in which background does not count; see `Detector.targets`.
Targets = tuple[list[Tensor], list[Tensor], list[Tensor]]


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, and its feature maps."""

    images: ImageBatch
    features: list[Tensor]


class RegionDetector(Detector):
    """Base of Fast and Faster R-CNN, which say where proposals come from (`propose`).

    The defaults are torchvision's (the ``modern`` preset); ``configs`` holds those of the papers.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        backbone: alexnet, vgg16, resnet18, resnet34, resnet50, resnet101, mobilenet_v2, mobilenet_v3_large,
            squeezenet1_0, or tiny (small images, from scratch).
        fpn: put a feature pyramid on the backbone.
        weights: the backbone's: null (from scratch), DEFAULT, a torchvision weight name, or a local file.
        backbone_levels: layers that are read instead of the usual ones, by torchvision's child names.
        fpn_channels: channels of the pyramid.
        fpn_norm: batch norm in the pyramid.
        transfer: which part of the backbone learns: frozen, partial or full.
        trainable_stages: with ``partial``: how many of the last stages.
        freeze_batch_norm: the backbone's batch norms are a fixed scale and shift.
        batch_norm_eps: replaces the backbone's own epsilon.
        initialization: he or xavier, for what is trained from scratch.
        channels_last: memory format of images and features; quicker for most networks.
        min_size: pixels of an image's shorter side; several values are drawn from in training, the last serves
            otherwise.
        max_size: limit of its longer side.
        image_mean: per RGB channel, for values from 0 to 1.
        image_std: likewise.
        size_divisor: height and width of a batch become multiples of it.
        pooling: align or max.
        pool_size: cells a side of a pooled region.
        sampling_ratio: samples per cell and axis of align.
        box_head: mlp (two fully connected layers), conv (four convolutions and one), top (the backbone's own rest).
        head_channels: width of the fully connected layers.
        dropout: of mlp.
        svd_ranks: fully connected layers that are products of two of this rank, such as {fc6: 1024, fc7: 256}; made
            by ``detkit compress``.
        roi_foreground_iou: regions from this IoU are foreground.
        roi_background_iou: regions are background within [low, high).
        roi_batch_size: regions sampled of each image.
        roi_positive_fraction: at most this share of them foreground.
        box_weights: factors of the regression targets.
        box_loss: smooth_l1, l1, l2 or giou.
        box_beta: where smooth L1 turns linear; 1 in the paper.
        score_threshold: detections with a lower score are dropped.
        max_candidates: best detections of each class that enter suppression, 100 in Fast R-CNN; null: all.
        nms_threshold: IoU within a class above which the lower detection is suppressed.
        max_detections: of an image.
        shared: arguments of `Detector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        fpn: bool = True,
        weights: str | None = None,
        backbone_levels: list[str] | None = None,
        fpn_channels: int = 256,
        fpn_norm: bool = False,
        transfer: str = "full",
        trainable_stages: int | None = None,
        freeze_batch_norm: bool = False,
        batch_norm_eps: float | None = None,
        initialization: str = "he",
        channels_last: bool = False,
        min_size: int | list[int] = 800,
        max_size: int = 1333,
        image_mean: list[float] = list(IMAGENET_MEAN),  # noqa: B006 - never changed
        image_std: list[float] = list(IMAGENET_STD),  # noqa: B006
        size_divisor: int = 32,
        pooling: str = "align",
        pool_size: int = 7,
        sampling_ratio: int = 2,
        box_head: str = "mlp",
        head_channels: int = 1024,
        dropout: float = 0.0,
        svd_ranks: dict[str, int] | None = None,
        roi_foreground_iou: float = 0.5,
        roi_background_iou: tuple[float, float] = (0.0, 0.5),
        roi_batch_size: int = 512,
        roi_positive_fraction: float = 0.25,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        box_loss: str = "smooth_l1",
        box_beta: float = 1 / 9,
        score_threshold: float = 0.05,
        max_candidates: int | None = None,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        _proposer: Callable[[Backbone], nn.Module] | None = None,
        **shared: Any,
    ) -> None:
        preprocessing = Preprocessing(min_size, max_size, image_mean, image_std, size_divisor, channels_last)
        super().__init__(class_names, preprocessing, **shared)
        features = MapSettings(
            transfer=transfer,
            trainable_stages=trainable_stages,
            freeze_batch_norm=freeze_batch_norm,
            initialization=initialization,
            channels_last=channels_last,
            fpn=fpn,
            fpn_channels=fpn_channels,
            fpn_norm=fpn_norm,
            levels=backbone_levels,
            batch_norm_eps=batch_norm_eps,
        )
        self.backbone, top = build_backbone(backbone, weights, features)
        # Built here, for optimizer states in checkpoints follow the order of the parts.
        if _proposer is not None:
            self.rpn = _proposer(self.backbone)
        head, features = build_box_head(
            box_head,
            inputs=self.backbone.channels[0],
            pool_size=pool_size,
            channels=head_channels,
            dropout=dropout,
            top=top,
            initialization=initialization,
            svd_ranks=svd_ranks,
        )
        self.roi_heads = RegionClassifier(
            # The pyramid's last level is a subsampled copy for large anchors; regions are not read from it.
            RoIPooler(pooling, pool_size, self.backbone.strides[: len(self.backbone.levels)], sampling_ratio),
            head,
            BoxPredictor(features, self.num_classes),
            RegionSettings(
                foreground_iou=roi_foreground_iou,
                background_iou=tuple(roi_background_iou),
                batch_size=roi_batch_size,
                positive_fraction=roi_positive_fraction,
                box_weights=tuple(box_weights),
                box_loss=box_loss,
                beta=box_beta,
                score_threshold=score_threshold,
                max_candidates=max_candidates,
                nms_threshold=nms_threshold,
                max_detections=max_detections,
            ),
        )
        if channels_last:
            self.to(memory_format=torch.channels_last)

    # -- what a generation implements ----------------------------------------------------------

    def propose(self, batch: Batch, encoded: Any) -> list[Proposals]:
        """Where the objects of each image may be, in the batch's pixels."""
        raise NotImplementedError(f"{type(self).__name__} must implement propose")

    def proposal_losses(self, encoded: Any, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of what proposes, if it learns, and its sampler's health."""
        return {}, {}

    # -- shared parts --------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Encoded:
        """Backbone over a batch of samples (only ``image`` is read)."""
        images = self.prepare(batch)
        return Encoded(images, self.backbone(images.tensor))

    def losses(self, batch: Batch, encoded: Any = None) -> dict[str, Tensor]:
        """``loss_classifier`` and ``loss_box_reg`` of a batch of samples, after the losses of what proposes."""
        encoded = encoded or self.encode(batch)
        targets = self.targets(batch, encoded.images)
        losses, health = self.proposal_losses(encoded, targets)
        proposals = self.propose(batch, encoded)
        roi_losses, roi_health = self.roi_heads.losses(
            encoded.features, [p.boxes for p in proposals], [p.usable for p in proposals], *targets
        )
        self.health = health | roi_health
        return losses | roi_losses

    def detect(self, batch: Batch, encoded: Any = None) -> list[dict[str, Tensor]]:
        """Detections of each image of a batch of samples."""
        encoded = encoded or self.encode(batch)
        proposals = [p.boxes[p.usable] for p in self.propose(batch, encoded)]
        return self.roi_heads.detect(encoded.features, proposals, encoded.images)
