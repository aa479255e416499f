"""torchvision's Faster R-CNN around the networks of one of ours: the same layers and settings, its own steps."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.ops import MultiScaleRoIAlign

from detkit.boxes.anchors import AnchorSettings
from detkit.detectors import Detector, FasterRCNN
from detkit.features.roi_pooling import RoIPooler
from detkit.proposals.region_proposal_network import RPNHead
from detkit.settings import construct

#: Pixels: narrower proposals are dropped, by torchvision in the resized image, by detkit in the original one. With a
#: larger side these differ.
LEAST_SIDE = 1.0


def torchvision_equivalent(detector: Detector) -> TorchvisionFasterRCNN | None:
    """The detector, in eval mode, by torchvision; None where it has none: it knows only Faster R-CNN with RoIAlign.

    It shares the layers, and so the weights, with the detector.
    """
    if not isinstance(detector, FasterRCNN) or detector.rpn_backbone is not None:
        return None
    anchors = construct(AnchorSettings, detector.hparams["anchors"])
    heads, pooler, rpn = detector.roi_heads, detector.roi_heads.pooler, detector.rpn.settings
    known = anchors.convention == "torchvision" and heads.normalizer is None and rpn.straddle is None
    known &= rpn.min_size <= LEAST_SIDE
    if not known or not isinstance(pooler, RoIPooler) or pooler.kind != "align":
        return None
    image, detection, roi = detector.preprocessing.settings, heads.detection, heads.settings
    if image.min_sizes is None or detection.max_candidates is not None:
        return None
    sizes = anchors.level_sizes(len(detector.backbone.strides))
    levels = [str(i) for i in range(len(pooler.strides))]
    return TorchvisionFasterRCNN(
        _Backbone(detector.backbone, detector.backbone.channels[0]),
        min_size=image.min_sizes[-1],
        max_size=image.max_size,
        size_divisible=image.divisor,
        image_mean=list(image.mean),
        image_std=list(image.std),
        rpn_anchor_generator=TorchvisionAnchors(tuple(map(tuple, sizes)), (tuple(anchors.ratios),) * len(sizes)),
        rpn_head=_RPNHead(detector.rpn.head),
        rpn_pre_nms_top_n_test=rpn.pre_nms[1],
        rpn_post_nms_top_n_test=rpn.post_nms[1],
        rpn_nms_thresh=rpn.nms_threshold,
        rpn_score_thresh=rpn.score_threshold,
        box_roi_pool=MultiScaleRoIAlign(levels, pooler.output_size, pooler.sampling_ratio),
        box_head=heads.box_head,
        box_predictor=_BoxPredictor(heads.box_predictor),
        box_score_thresh=detection.score_threshold,
        box_nms_thresh=detection.nms_threshold,
        box_detections_per_img=detection.max_detections,
        bbox_reg_weights=tuple(roi.box_weights),
    ).eval()


class _Backbone(nn.Module):
    """Maps by name, as torchvision reads them."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(i), each) for i, each in enumerate(self.backbone(images)))


class _RPNHead(nn.Module):
    """Logits and deltas as maps, one of each level."""

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [self.head.conv(each) for each in features]
        return [self.head.cls_logits(each) for each in hidden], [self.head.bbox_pred(each) for each in hidden]


class _BoxPredictor(nn.Module):
    """Deltas of all classes in one row."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = self.predictor(x)
        return logits, torch.flatten(deltas, 1)
