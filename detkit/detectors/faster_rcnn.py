"""Faster R-CNN (Ren et al. 2015): Fast R-CNN whose proposals come from a network on the same features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback
from torch import Tensor

from detkit.boxes.anchors import AnchorSettings
from detkit.detectors.alternating import AlternatingSchedule, repeated
from detkit.detectors.base import RegionDetector
from detkit.engine.summary import field_lines
from detkit.features.preprocessing import ImageBatch
from detkit.proposals.region_proposal_network import Proposals, RegionProposalNetwork, RPNOutput, RPNSettings
from detkit.settings import check_choice, from_plain
from detkit.types import Batch, Targets

SCHEMES = ("joint", "alternating")


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, its feature maps, and the RPN's output."""

    images: ImageBatch
    features: list[Tensor]
    rpn: RPNOutput


class FasterRCNN(RegionDetector):
    """Faster R-CNN, trained jointly on its four losses (approximate joint training, section 3.2).

    The defaults are torchvision's (the ``modern`` preset); ``configs/faster_rcnn`` holds those of the paper. Backbone,
    second stage and training are those of `RegionDetector`, and so are their arguments.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        anchors: sizes and ratios of the anchors.
        rpn: the region proposal network.
        training_scheme: joint, or alternating (the paper's four steps, in each of which the schedule runs anew).
        shared: arguments of `RegionDetector`.

    Raises:
        ConfigError: for an unknown name, or numbers that do not fit together.
        WeightsError: for weights that do not fit the backbone.
    """

    def __init__(
        self,
        class_names: list[str],
        anchors: AnchorSettings = AnchorSettings(),
        rpn: RPNSettings = RPNSettings(),
        training_scheme: str = "joint",
        **shared: Any,
    ) -> None:
        check_choice("training_scheme", training_scheme, SCHEMES)
        super().__init__(class_names, **shared)
        #: In the first two of four steps the RPN has a backbone of its own.
        self.rpn_backbone = copy.deepcopy(self.backbone) if training_scheme == "alternating" else None
        self.alternation = AlternatingSchedule() if training_scheme == "alternating" else None

    def build_rpn(self) -> None:
        """The RPN, on the backbone's maps."""
        anchors = from_plain(AnchorSettings, self.hparams["anchors"])
        rpn = from_plain(RPNSettings, self.hparams["rpn"])
        self.rpn = RegionProposalNetwork(self.backbone.channels[0], anchors.generator(self.backbone.strides), rpn)

    def encode(self, batch: Batch) -> Encoded:
        """Backbone and RPN head over a batch of samples (only ``image`` is read)."""
        images, features = super().encode(batch)
        rpn_features = features
        if self.alternation is not None and not self.alternation.shares_backbone:
            rpn_features = self.rpn_backbone(images.tensor)
        return Encoded(images, features, self.rpn(rpn_features, images))

    def proposal_losses(self, encoded: Encoded, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_objectness`` and ``loss_rpn_box_reg``, and the statistics of the RPN's sampler."""
        return self.rpn.losses(encoded.rpn, encoded.images, targets)

    def propose(self, batch: Batch, encoded: Encoded) -> list[Proposals]:
        """The RPN's best boxes of each image."""
        return self.rpn.propose(encoded.rpn, encoded.images)

    def feature_lines(self) -> list[str]:
        """A line for each feature map: stride, receptive field and anchors."""
        return field_lines(self.backbone, self.rpn)

    # -- alternating training ----------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """What moves the model through the four steps of alternating training."""
        return [] if self.alternation is None else [self.alternation]

    def lr_factor(self, total_steps: int) -> Callable[[int], float]:
        """The learning rate's factor; in alternating training the schedule runs anew in each of the four steps."""
        if self.alternation is None:
            return super().lr_factor(total_steps)
        return repeated(super().lr_factor, total_steps)

    def restore_parts(self, checkpoint: dict[str, Any]) -> None:
        """From the third step on a checkpoint has no weights of a backbone that is the RPN's own."""
        if self.alternation is not None:
            self.alternation.restore(self, checkpoint)

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
            overrides: single settings by their dotted names with ``__``, such as ``detection__score_threshold=0.5``,
                or whole arguments of the constructor. torchvision sets ``features__batch_norm_eps=0.0`` where it loads
                its COCO_V1 weights of the ResNet-50-FPN and MobileNetV3 models itself: give that for their files.

        Raises:
            ConfigError: for an unknown arch, or an argument that there is not.
            WeightsError: if keys or shapes do not fit.
        """
        from detkit.detectors.torchvision_weights import from_torchvision

        return from_torchvision(cls, arch, state_dict, class_names, overrides)
