"""Faster R-CNN (Ren et al. 2015): Fast R-CNN whose proposals come from a network on the same features."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from detkit.boxes import AnchorGenerator
from detkit.detectors.alternating import AlternatingMixin
from detkit.detectors.base import Batch
from detkit.detectors.region_detector import RegionDetector, Targets
from detkit.features import Backbone, ImageBatch
from detkit.proposals import Proposals, RegionProposalNetwork, RPNSettings
from detkit.proposals.region_proposal_network import RPNOutput


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, its feature maps, and the RPN's output."""

    images: ImageBatch
    features: list[Tensor]
    rpn: RPNOutput


class FasterRCNN(AlternatingMixin, RegionDetector):
    """Faster R-CNN, trained jointly on its four losses (approximate joint training, section 3.2).

    The defaults are torchvision's (the ``modern`` preset); ``configs/faster_rcnn`` holds those of the paper. Backbone,
    region classifier and training are those of `RegionDetector`, and so are their arguments.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
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
        training_scheme: joint, or alternating (the paper's four steps, in each of which the schedule runs anew).
        shared: arguments of `RegionDetector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        anchor_sizes: list[list[float]] | None = None,
        anchor_ratios: list[float] = [0.5, 1.0, 2.0],  # noqa: B006 - never changed
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
        training_scheme: str = "joint",
        **shared: Any,
    ) -> None:
        def region_proposal_network(backbone: Backbone) -> RegionProposalNetwork:
            sizes = anchor_sizes
            if sizes is None:
                pyramid = backbone.fpn is not None
                sizes = [[32.0 * 2**i] for i in range(len(backbone.strides))] if pyramid else [[128.0, 256.0, 512.0]]
            return RegionProposalNetwork(
                backbone.channels[0],
                AnchorGenerator(
                    sizes,
                    anchor_ratios,
                    convention=anchor_convention,
                    num_levels=len(backbone.strides),
                    strides=backbone.strides if anchor_convention == "paper" else None,
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

        super().__init__(class_names, _proposer=region_proposal_network, **shared)
        self.set_training_scheme(training_scheme)

    def encode(self, batch: Batch) -> Encoded:
        """Backbone and RPN head over a batch of samples (only ``image`` is read)."""
        images, features = super().encode(batch)
        own = self.alternation is not None and not self.alternation.shares_backbone
        return Encoded(images, features, self.rpn(self.rpn_backbone(images.tensor) if own else features, images))

    def proposal_losses(self, encoded: Encoded, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_objectness`` and ``loss_rpn_box_reg``, and the health of the RPN's sampler."""
        boxes, _, regions = targets
        return self.rpn.losses(encoded.rpn, encoded.images, boxes, regions)

    def propose(self, batch: Batch, encoded: Encoded) -> list[Proposals]:
        """The RPN's best boxes of each image."""
        return self.rpn.propose(encoded.rpn, encoded.images)

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
