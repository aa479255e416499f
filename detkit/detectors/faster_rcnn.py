"""Faster R-CNN (Ren et al. 2015): Fast R-CNN whose proposals come from a network on the same features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback
from torch import Tensor, nn

from detkit.boxes.anchors import AnchorSettings
from detkit.detectors.alternating import AlternatingSchedule, repeated
from detkit.detectors.base import RegionDetector
from detkit.detectors.torchvision_files import CLS_SCORE, with_current_names
from detkit.engine.summary import field_lines
from detkit.engine.torchvision_detectors import ARCHITECTURES
from detkit.errors import WeightsError
from detkit.features.preprocessing import ImageBatch
from detkit.features.weights import fit_state_dict
from detkit.proposals.region_proposal_network import ProposalBatch, RegionProposalNetwork, RPNOutput, RPNSettings
from detkit.settings import check_choice, construct
from detkit.types import Batch, Targets

SCHEMES = ("joint", "alternating")


class Encoded(NamedTuple):
    """One pass over a batch: the images as the network sees them, its feature maps, and the RPN's output."""

    images: ImageBatch
    features: list[Tensor]
    rpn: RPNOutput


class FasterRCNN(RegionDetector):
    """Faster R-CNN, trained jointly on its four losses (approximate joint training, section 3.2).

    The defaults are torchvision's (the ``modern`` preset); ``configs/faster_rcnn`` holds those of the paper.

    Args:
        class_names: the classes, without background. Given by the data set on the command line.
        anchors: sizes and ratios of the anchors.
        rpn: the region proposal network.
        training_scheme: joint, or alternating (the paper's four steps, in each of which the schedule runs anew).
        shared: arguments of `RegionDetector`.
    """

    def __init__(
        self,
        class_names: list[str],
        *,
        anchors: AnchorSettings = AnchorSettings(),
        rpn: RPNSettings = RPNSettings(),
        training_scheme: str = "joint",
        **shared: Any,
    ) -> None:
        check_choice("training_scheme", training_scheme, SCHEMES)
        super().__init__(class_names, **shared)
        #: In the first two of four steps the RPN has a backbone of its own.
        self.rpn_backbone: Any = copy.deepcopy(self.backbone) if training_scheme == "alternating" else None
        self.alternation = AlternatingSchedule() if training_scheme == "alternating" else None
        self.has_stages = self.alternation is not None

    def build_rpn(self) -> None:
        """The RPN, on the backbone's maps."""
        anchors = construct(AnchorSettings, self.hparams["anchors"])
        rpn = construct(RPNSettings, self.hparams["rpn"])
        self.rpn = RegionProposalNetwork(self.backbone.channels[0], anchors.generator(self.backbone.strides), rpn)

    def encode_images(self, images: ImageBatch) -> Encoded:
        """Backbone and RPN head over prepared images."""
        images, features = super().encode_images(images)
        rpn_features = features
        if self.alternation is not None and not self.alternation.shares_backbone:
            rpn_features = self.rpn_backbone(images.tensor)
        return Encoded(images, features, self.rpn(rpn_features, images))

    def backbone_parts(self) -> list[nn.Module]:
        own = [] if self.rpn_backbone is None else [self.rpn_backbone.body]
        return [*super().backbone_parts(), *own]

    def proposal_losses(self, encoded: Encoded, targets: Targets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``loss_objectness`` and ``loss_rpn_box_reg``, and the statistics of the RPN's sampler."""
        return self.rpn.losses(encoded.rpn, encoded.images, targets)

    def propose(self, batch: Batch, encoded: Encoded) -> ProposalBatch:
        """The RPN's best boxes of each image."""
        return self.rpn.propose(encoded.rpn, encoded.images)

    def feature_lines(self) -> list[str]:
        return field_lines(self.backbone, self.rpn)

    def configure_callbacks(self) -> list[Callback]:
        callbacks = super().configure_callbacks()
        return callbacks if self.alternation is None else [*callbacks, self.alternation]

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
            arch: one of `ARCHITECTURES`.
            state_dict: of a detector that torchvision built.
            class_names: without background, in the order of the labels.
            overrides: arguments of the constructor; single settings as ``detection__score_threshold=0.5``. torchvision
                sets ``features__batch_norm_eps=0.0`` where it loads its COCO_V1 weights of fasterrcnn_resnet50_fpn
                itself: give that for their file. `detkit.load` does it, of the file or of ``torchvision:NAME``.

        Raises:
            ConfigError: for an unknown arch, or an argument that there is not.
            WeightsError: if keys or shapes do not fit, or the number of classes.
        """
        state_dict = with_current_names(state_dict)
        check_choice("torchvision detector", arch, ARCHITECTURES)
        # torchvision's COCO categories hold "N/A" ten times.
        names = [f"{name} {i}" if class_names.count(name) > 1 else name for i, name in enumerate(class_names, start=1)]
        settings = {"class_names": names, "rpn__min_size": 1e-3, **ARCHITECTURES[arch], **overrides}
        rows = state_dict.get(f"{CLS_SCORE}.bias")
        if rows is not None and len(rows) != len(class_names) + 1:
            raise WeightsError(
                f"the weights know {len(rows) - 1} classes, class_names has {len(class_names)}: to teach them other "
                "classes use from_pretrained"
            )
        model = construct(cls, settings)
        fit_state_dict(model, state_dict, source=f"of {arch}")
        return model.eval()
