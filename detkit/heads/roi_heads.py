"""The second stage of Fast and Faster R-CNN: heads on pooled regions, sampling, losses and detections.

Shape letters: N images, P proposals of an image, R regions of the batch, G ground-truth boxes, I ignore boxes,
K classes, C channels, S cells a side of a pooled region. Layer names (fc6, fc7, cls_score, bbox_pred) are those of the
papers' code and of torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.boxes import BoxCodec, box_iou
from detkit.errors import ConfigError
from detkit.features.layers import initialize, normal_
from detkit.features.preprocessing import ImageBatch
from detkit.features.roi_pooling import RoIPooler
from detkit.heads.detection import Candidates, DetectionSettings, Found, candidates, suppress
from detkit.heads.svd import FactoredLinear, replace_layers
from detkit.proposals.region_proposal_network import Proposals
from detkit.settings import check_choice, check_range
from detkit.training.box_statistics import BoxStatistics
from detkit.training.losses import BOX_LOSSES, box_regression_loss, cross_entropy
from detkit.training.sampling import ignore_background, match, sample
from detkit.types import Regions, Targets

HEADS = ("mlp", "conv", "top")
#: Detections with a shorter side are dropped, in the batch's pixels, as in torchvision.
MIN_DETECTION_SIZE = 0.01


@dataclass(frozen=True)
class RoISettings:
    """The second stage (papers.md 2.2, 2.3 and 2.5).

    Args:
        pooling: align or max.
        pool_size: cells a side of a pooled region.
        sampling_ratio: samples per cell and axis of align.
        head: mlp (two fully connected layers), conv (four convolutions and one), top (the backbone's last layers).
        head_channels: width of the fully connected layers.
        dropout: of mlp.
        svd_ranks: fully connected layers that are products of two of this rank, such as {fc6: 1024, fc7: 256}; made
            by ``detkit compress``.
        foreground_iou: regions from this IoU are foreground.
        background_iou: regions are background within [low, high).
        batch_size: regions sampled of each image.
        positive_fraction: at most this share of them foreground.
        box_weights: factors of the regression targets; 10, 10, 5, 5 is 1 / (.1, .1, .2, .2).
        box_loss: smooth_l1, l1, l2 or giou.
        box_loss_weight: factor of it in the sum of the losses; mmdetection gives giou 10.
        beta: where smooth L1 turns linear; 1 in the paper.
    """

    pooling: str = "align"
    pool_size: int = 7
    sampling_ratio: int = 2
    head: str = "mlp"
    head_channels: int = 1024
    dropout: float = 0.0
    svd_ranks: dict[str, int] | None = None
    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.0, 0.5)
    batch_size: int = 512
    positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_loss: str = "smooth_l1"
    box_loss_weight: float = 1.0
    beta: float = 1 / 9

    def __post_init__(self) -> None:
        check_choice("roi.head", self.head, HEADS)
        check_choice("roi.box_loss", self.box_loss, BOX_LOSSES)
        check_range("roi.box_loss_weight", self.box_loss_weight, 0)
        for name, most in (("pool_size", 64), ("head_channels", 65536), ("batch_size", math.inf)):
            check_range(f"roi.{name}", getattr(self, name), 1, most)
        for name in ("foreground_iou", "positive_fraction", "dropout"):
            check_range(f"roi.{name}", getattr(self, name), 0, 1)
        if len(self.background_iou) != 2:
            raise ConfigError(f"roi.background_iou wants 2 values, not {self.background_iou!r:.60}")
        low, high = self.background_iou
        if not 0 <= low <= high <= self.foreground_iou:
            raise ConfigError(
                f"roi.background_iou {[low, high]} and roi.foreground_iou {self.foreground_iou}: background must be a "
                "range from 0 on that ends at foreground_iou or below"
            )


class Refined(NamedTuple):
    """Regions after the box regression of their most probable class other than background.

    boxes: (R, 4), in the batch's pixels, not clipped to the image.
    scores: (R,), that class's probability.
    labels: int64 (R,), from 1 to K.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class RoIHeads(nn.Module):
    """RoI pooling, box head and predictor, with what training and detection need around them.

    Args:
        pooler: from feature maps to regions.
        box_head: from pooled regions to vectors.
        box_predictor: from vectors to logits (R, K + 1) and deltas (R, K + 1, 4).
        settings: sampling and losses.
        detection: which regions become detections.
    """

    def __init__(
        self,
        pooler: RoIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        settings: RoISettings = RoISettings(),
        detection: DetectionSettings = DetectionSettings(),
    ) -> None:
        super().__init__()
        self.pooler = pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.settings = settings
        self.detection = detection
        self.codec = BoxCodec(settings.box_weights)
        self.normalizer: BoxNormalizer | None = None

    def normalize_per_class(self, num_classes: int) -> None:
        """Scale regression targets by statistics of each class instead of by ``box_weights``."""
        self.codec = BoxCodec()
        self.normalizer = BoxNormalizer(num_classes)

    def forward(self, features: list[Tensor], regions: Regions) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K + 1, 4) of regions."""
        return self.box_predictor(self.box_head(self.pooler(features, regions.rois)))

    def losses(
        self, features: list[Tensor], proposals: Sequence[Proposals], targets: Targets
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses over a sample of each image's regions, ground truth joined to the proposals.

        Returns:
            ``loss_classifier`` and ``loss_box_reg``, both over the number of sampled regions of the batch, and the
            sampler's statistics: foreground and background per image, the ground truths' mean best IoU with a proposal,
            and the share of them with one of 0.5 and more (NaN where the batch has no ground truth).
        """
        s = self.settings
        sampled = [self._sample(*image) for image in zip(proposals, *targets, strict=True)]
        rois, *rest = map(list, zip(*sampled, strict=True))
        regions = Regions.of(rois)
        logits, deltas = self(features, regions)
        roi = regions.boxes
        box, label, positive, valid, best_iou = map(torch.cat, rest)
        deltas = deltas.gather(1, label[:, None, None].expand(-1, 1, 4))[:, 0]
        if s.box_loss == "giou":
            predicted, target = self._decode(deltas, roi, label), box
        else:
            predicted, target = deltas, self._encode(box, roi, label)
        count = valid.sum().clamp(min=1)
        loss_box_reg = box_regression_loss(predicted, target, positive & valid, count, s.box_loss, s.beta)
        losses = {
            "loss_classifier": cross_entropy(logits, label, valid),
            "loss_box_reg": s.box_loss_weight * loss_box_reg,
        }
        stats = {
            "roi_foreground": (positive & valid).sum() / len(rois),
            "roi_background": (~positive & valid).sum() / len(rois),
            "roi_mean_best_iou": best_iou.mean(),
            "proposal_recall_50": (best_iou >= 0.5).float().mean(),
        }
        return losses, stats

    @torch.no_grad()
    def _sample(self, proposals: Proposals, boxes: Tensor, labels: Tensor, ignore_boxes: Tensor) -> tuple[Tensor, ...]:
        """Of one image: regions (n, 4), their boxes and labels, which are positive and valid, and best IoUs (G,)."""
        s = self.settings
        low, high = s.background_iou
        rois = torch.cat([proposals.boxes, boxes])
        valid = torch.cat([proposals.valid, proposals.valid.new_ones(len(boxes))])
        iou = box_iou(boxes, rois)
        matches = match(iou, s.foreground_iou, high, low_quality=False)
        matches = ignore_background(matches, rois, ignore_boxes)
        excluded = ~valid | ((matches.label == 0) & (matches.iou < low))
        chosen = sample(matches.label.masked_fill(excluded, -1), s.batch_size, s.positive_fraction)
        roi, index = rois[chosen.index], matches.index[chosen.index]
        if len(boxes):
            box, label = boxes[index], torch.where(chosen.positive, labels[index], 0)
        else:
            box, label = roi, torch.zeros_like(index)
        of_proposals = iou[:, : len(proposals.boxes)].masked_fill(~proposals.valid, 0)
        best_iou = of_proposals.amax(1) if of_proposals.shape[1] else of_proposals.new_zeros(len(boxes))
        return roi, box, label, chosen.positive, chosen.valid, best_iou

    def _encode(self, boxes: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """What is to be predicted (R, 4) for regions of these classes (R,)."""
        deltas = self.codec.encode(boxes, rois)
        return deltas if self.normalizer is None else self.normalizer.normalize(deltas, labels)

    def _decode(self, predicted: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """The boxes (R, 4) that predictions for these classes (R,) mean."""
        deltas = predicted if self.normalizer is None else self.normalizer.restore(predicted, labels)
        return self.codec.decode(deltas, rois)

    @torch.no_grad()
    def refine(self, features: list[Tensor], regions: Regions) -> Refined:
        """What the heads make of each region, before suppression and thresholds; see `Refined`."""
        logits, deltas = self(features, regions)
        scores, labels = logits.softmax(1)[:, 1:].max(1)
        labels = labels + 1
        chosen = deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]
        return Refined(self._decode(chosen, regions.boxes, labels), scores, labels)

    def detect(self, features: list[Tensor], regions: Regions, images: ImageBatch) -> Found:
        """Detections from regions, in the original images' pixels; see `suppress`."""
        logits, deltas = self(features, regions)
        scores = logits.softmax(1)[:, 1:].masked_fill(~regions.valid[:, None], -1)
        row, label = candidates(scores, regions.image, images.tensor.shape[0], self.detection)
        label = label + 1
        boxes = self._decode(deltas[row, label], regions.boxes[row], label)
        found = Candidates(boxes, scores[row, label - 1], label, regions.image[row])
        return suppress(found, images, self.detection, MIN_DETECTION_SIZE)


class TwoMLPHead(nn.Module):
    """fc6 and fc7 with ReLU (and dropout), on the flattened region."""

    def __init__(self, inputs: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(inputs, channels)
        self.fc7 = nn.Linear(channels, channels)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, channels)."""
        x = F.dropout(F.relu(self.fc6(x.flatten(1))), self.dropout, self.training)
        return F.dropout(F.relu(self.fc7(x)), self.dropout, self.training)


class ConvHead(nn.Sequential):
    """Four 3x3 convolutions with batch norm and one fully connected layer (torchvision's v2 model)."""

    def __init__(self, inputs: int, pool_size: int, channels: int, convolutions: int = 4) -> None:
        blocks = [
            nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, padding=1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
            )
            for _ in range(convolutions)
        ]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(inputs * pool_size**2, channels), nn.ReLU(inplace=True))


class BoxPredictor(nn.Module):
    """Class logits (background first) and four deltas for each class."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(inputs, num_classes + 1)
        self.bbox_pred = nn.Linear(inputs, (num_classes + 1) * 4)
        normal_(self.cls_score, 0.01)
        normal_(self.bbox_pred, 0.001)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) -> logits (R, K + 1) and deltas (R, K + 1, 4), in float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


def build_box_head(
    settings: RoISettings, inputs: int, top: nn.Module | None = None, initialization: str = "he"
) -> tuple[nn.Module, int]:
    """The layers between RoI pooling and the predictor, and the number of features they give for each region.

    Args:
        settings: which head, its width, and the ranks of its layers.
        inputs: channels of the features.
        top: from `build_backbone`, for ``head: top``.
        initialization: ``he`` or ``xavier``, for the new layers.

    Raises:
        ConfigError: for a backbone without a top, a pool size that the top does not take, or layers and ranks that the
            head cannot have.
    """
    s = settings
    outputs = s.head_channels
    head: nn.Module
    if s.head == "top":
        outputs = _top_features(top, inputs, s.pool_size)
        head = cast(nn.Module, top)  # else that has raised an error
    elif s.head == "mlp":
        head = TwoMLPHead(inputs * s.pool_size**2, s.head_channels, s.dropout)
    else:
        head = ConvHead(inputs, s.pool_size, s.head_channels)
    if s.svd_ranks:
        replace_layers(head, s.svd_ranks, FactoredLinear.like)
    if s.head != "top":
        initialize([head], initialization)
    return head, outputs


def _top_features(top: nn.Module | None, inputs: int, pool_size: int) -> int:
    if top is None:
        raise ConfigError("roi.head: top needs a backbone with layers after its trunk, without fpn; use roi.head: mlp")
    training = top.training
    try:
        with torch.no_grad():
            return top.eval()(torch.zeros(1, inputs, pool_size, pool_size)).shape[1]
    except RuntimeError as error:
        raise ConfigError(
            f"roi.head: top of this backbone does not take {pool_size}x{pool_size} features; its own roi.pool_size is "
            "7 for vgg16, 6 for alexnet and 8 for lenet5"
        ) from error
    finally:
        top.train(training)


class BoxNormalizer(nn.Module):
    """Regression targets of each of K classes with mean 0 and deviation 1 (Girshick 2015, section 2.3).

    The statistics of the training set are buffers: they stand beside the weights in a checkpoint and are never
    multiplied into them. Until they are measured nothing is changed.
    """

    mean: Tensor
    std: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes + 1, 4))
        self.register_buffer("std", torch.ones(num_classes + 1, 4))
        self.register_buffer("count", torch.zeros(num_classes + 1, dtype=torch.int64))

    @property
    def known(self) -> bool:
        """Whether statistics were measured or loaded."""
        return bool(self.count.any())

    def set(self, statistics: BoxStatistics) -> None:
        """Take the statistics of a training set."""
        for name, value in statistics._asdict().items():
            getattr(self, name).copy_(value)

    def normalize(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """What the network is to predict for deltas (R, 4) of classes (R,)."""
        return (deltas - self.mean[labels]) / self.std[labels]

    def restore(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """The deltas (R, 4) that predictions for classes (R,) mean."""
        return predicted * self.std[labels] + self.mean[labels]
