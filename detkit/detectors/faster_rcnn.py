"""Faster R-CNN (Ren et al. 2015): Fast R-CNN whose proposals come from a network on the same features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from detkit.boxes import AnchorGenerator
from detkit.detectors.alternating import AlternatingMixin
from detkit.detectors.base import Batch, Detector
from detkit.features import ImageBatch, Preprocessing, RoIPooler, apply_transfer, build_backbone
from detkit.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from detkit.heads import BoxPredictor, RegionClassifier, RegionSettings, build_box_head
from detkit.proposals import RegionProposalNetwork, RPNSettings
from detkit.proposals.region_proposal_network import RPNOutput


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, its feature maps, and the RPN's output."""

    images: ImageBatch
    features: list[Tensor]
    rpn: RPNOutput


class FasterRCNN(AlternatingMixin, Detector):
    """Faster R-CNN, trained jointly on its four losses (approximate joint training, section 3.2).

    The defaults are torchvision's (the ``modern`` preset); ``configs/faster_rcnn`` holds those of the paper.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        category_ids: the data set's own ids of these classes, written in predictions. Given by the data set.
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
        anchor_sizes: a list of sizes in pixels for each feature map; null gives 32 to 512 for a pyramid, and
            [128, 256, 512] for a single map.
        anchor_ratios: height over width.
        anchor_convention: torchvision or paper.
        rpn_convolutions: 3x3 convolutions in the RPN.
        rpn_channels: their channels; null: those of the features.
        rpn_foreground_iou: anchors from this IoU are foreground.
        rpn_background_iou: anchors below it are background.
        rpn_batch_size: anchors sampled of each image.
        rpn_positive_fraction: at most this share of them foreground.
        rpn_pre_nms: proposals of each map before suppression, in training and otherwise.
        rpn_post_nms: proposals of each image after it, in training and otherwise.
        rpn_nms_threshold: IoU above which the lower proposal is suppressed.
        rpn_min_size: proposals with a shorter side (original pixels) are dropped.
        rpn_score_threshold: proposals with a lower objectness are dropped.
        rpn_straddle: in training, anchors reaching further out of the image do not count; null: all count.
        rpn_box_loss: smooth_l1, l1, l2 or giou.
        rpn_beta: where smooth L1 turns linear; 1/9 is the paper's sigma 3.
        pooling: align or max.
        pool_size: cells a side of a pooled region.
        sampling_ratio: samples per cell and axis of align.
        box_head: mlp (two fully connected layers), conv (four convolutions and one), top (the backbone's own rest).
        head_channels: width of the fully connected layers.
        dropout: of mlp.
        roi_foreground_iou: regions from this IoU are foreground.
        roi_background_iou: regions are background within [low, high).
        roi_batch_size: regions sampled of each image.
        roi_positive_fraction: at most this share of them foreground.
        box_weights: factors of the regression targets.
        box_loss: smooth_l1, l1, l2 or giou.
        box_beta: where smooth L1 turns linear; 1 in the paper.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU within a class above which the lower detection is suppressed.
        max_detections: of an image.
        train_on_difficult: learn difficult objects too; otherwise they are neither object nor background.
        training_scheme: joint, or alternating (the paper's four steps).
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_biases: decay biases and batch norms too.
        bias_lr_factor: learning rate of biases relative to ``lr``; 2 in the paper's solver.
        lr_schedule: multistep, cosine or constant; with ``alternating`` it runs anew in each of the four steps.
        warmup_steps: steps over which the rate rises to ``lr``.
        warmup_factor: where it begins, relative to ``lr``.
        lr_milestones: steps at which the rate drops; below 1: as a fraction of the run.
        lr_gamma: factor of each drop.
        optimizer: replaces SGD, e.g. {class_path: torch.optim.AdamW, init_args: {lr: 0.0001}}.
        lr_scheduler: replaces the schedule; it steps per batch.
        protocol: of the mAP in validation and test: coco, voc07 or voc10.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        category_ids: list[int] | None = None,
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
        anchor_sizes: list[list[float]] | None = None,
        anchor_ratios: list[float] = [0.5, 1.0, 2.0],  # noqa: B006
        anchor_convention: str = "torchvision",
        rpn_convolutions: int = 1,
        rpn_channels: int | None = None,
        rpn_foreground_iou: float = 0.7,
        rpn_background_iou: float = 0.3,
        rpn_batch_size: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_pre_nms: tuple[int, int] = (2000, 1000),
        rpn_post_nms: tuple[int, int] = (2000, 1000),
        rpn_nms_threshold: float = 0.7,
        rpn_min_size: float = 0.0,
        rpn_score_threshold: float = 0.0,
        rpn_straddle: float | None = None,
        rpn_box_loss: str = "smooth_l1",
        rpn_beta: float = 1 / 9,
        pooling: str = "align",
        pool_size: int = 7,
        sampling_ratio: int = 2,
        box_head: str = "mlp",
        head_channels: int = 1024,
        dropout: float = 0.0,
        roi_foreground_iou: float = 0.5,
        roi_background_iou: tuple[float, float] = (0.0, 0.5),
        roi_batch_size: int = 512,
        roi_positive_fraction: float = 0.25,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        box_loss: str = "smooth_l1",
        box_beta: float = 1 / 9,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        train_on_difficult: bool = False,
        training_scheme: str = "joint",
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_biases: bool = True,
        bias_lr_factor: float = 1.0,
        lr_schedule: str = "multistep",
        warmup_steps: int = 500,
        warmup_factor: float = 0.001,
        lr_milestones: list[float] = [0.67, 0.92],  # noqa: B006
        lr_gamma: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        protocol: str = "coco",
    ) -> None:
        optimization = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "decay_biases": decay_biases,
            "bias_lr_factor": bias_lr_factor,
            "lr_schedule": lr_schedule,
            "warmup_steps": warmup_steps,
            "warmup_factor": warmup_factor,
            "lr_milestones": lr_milestones,
            "lr_gamma": lr_gamma,
        }
        preprocessing = Preprocessing(min_size, max_size, image_mean, image_std, size_divisor, channels_last)
        super().__init__(
            class_names,
            category_ids,
            preprocessing,
            optimization,
            optimizer,
            lr_scheduler,
            protocol,
            train_on_difficult,
        )
        self.backbone, top = build_backbone(
            backbone,
            fpn=fpn,
            weights=weights,
            levels=backbone_levels,
            fpn_channels=fpn_channels,
            fpn_norm=fpn_norm,
            initialization=initialization,
            freeze_batch_norm=freeze_batch_norm,
            batch_norm_eps=batch_norm_eps,
        )
        apply_transfer(self.backbone, backbone, transfer, trainable_stages)

        strides = self.backbone.strides
        if anchor_sizes is None:
            anchor_sizes = [[32.0 * 2**i] for i in range(len(strides))] if fpn else [[128.0, 256.0, 512.0]]
        self.rpn = RegionProposalNetwork(
            self.backbone.channels[0],
            AnchorGenerator(
                anchor_sizes,
                anchor_ratios,
                convention=anchor_convention,
                num_levels=len(strides),
                strides=strides if anchor_convention == "paper" else None,
            ),
            RPNSettings(
                foreground_iou=rpn_foreground_iou,
                background_iou=rpn_background_iou,
                batch_size=rpn_batch_size,
                positive_fraction=rpn_positive_fraction,
                pre_nms=tuple(rpn_pre_nms),
                post_nms=tuple(rpn_post_nms),
                nms_threshold=rpn_nms_threshold,
                min_size=rpn_min_size,
                score_threshold=rpn_score_threshold,
                straddle=rpn_straddle,
                box_loss=rpn_box_loss,
                beta=rpn_beta,
            ),
            depth=rpn_convolutions,
            hidden=rpn_channels,
        )

        head, features = build_box_head(
            box_head,
            inputs=self.backbone.channels[0],
            pool_size=pool_size,
            channels=head_channels,
            dropout=dropout,
            top=top,
            initialization=initialization,
        )
        self.roi_heads = RegionClassifier(
            # The pyramid's last level is a subsampled copy for large anchors; regions are not read from it.
            RoIPooler(pooling, pool_size, strides[: len(self.backbone.levels)], sampling_ratio),
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
                nms_threshold=nms_threshold,
                max_detections=max_detections,
            ),
        )
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.set_training_scheme(training_scheme)

    def encode(self, batch: Batch) -> Encoded:
        """Backbone and RPN head over a batch of samples (only ``image`` is read)."""
        images = self.prepare(batch)
        features = self.backbone(images.tensor)
        own = self.alternation is not None and not self.alternation.shares_backbone
        return Encoded(images, features, self.rpn(self.rpn_backbone(images.tensor) if own else features, images))

    def losses(self, batch: Batch, encoded: Encoded | None = None) -> dict[str, Tensor]:
        """``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier``, ``loss_box_reg`` of a batch of samples."""
        images, features, rpn = encoded or self.encode(batch)
        boxes, labels, regions = self.targets(batch, images)
        rpn_losses, rpn_health = self.rpn.losses(rpn, images, boxes, regions)
        proposals = self.rpn.propose(rpn, images)
        roi_losses, roi_health = self.roi_heads.losses(
            features,
            [p.boxes for p in proposals],
            [p.usable for p in proposals],
            boxes,
            labels,
            regions,
        )
        self.health = rpn_health | roi_health
        return rpn_losses | roi_losses

    def detect(self, batch: Batch, encoded: Encoded | None = None) -> list[dict[str, Tensor]]:
        """Detections of each image of a batch of samples (only ``image`` is read)."""
        images, features, rpn = encoded or self.encode(batch)
        proposals = [p.boxes[p.usable] for p in self.rpn.propose(rpn, images)]
        return self.roi_heads.detect(features, proposals, images)

    @classmethod
    def from_torchvision(
        cls, arch: str, state_dict: dict[str, Tensor], class_names: list[str], **overrides: Any
    ) -> FasterRCNN:
        """A detector with the weights of one of torchvision's, and the same detections.

        Args:
            arch: ``fasterrcnn_resnet50_fpn``, ``fasterrcnn_resnet50_fpn_v2``, ``fasterrcnn_mobilenet_v3_large_fpn``
                or ``fasterrcnn_mobilenet_v3_large_320_fpn``.
            state_dict: of a detector that torchvision built.
            class_names: without background, in the order of the labels.
            overrides: other arguments of the constructor. torchvision sets ``batch_norm_eps=0.0`` where it loads its
                COCO_V1 weights of the ResNet-50-FPN and MobileNetV3 models itself: give that for their files.

        Raises:
            ConfigError: for an unknown arch.
            WeightsError: if keys or shapes do not fit.
        """
        from detkit.detectors.torchvision_weights import from_torchvision

        return from_torchvision(cls, arch, state_dict, class_names, overrides)
