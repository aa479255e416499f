"""Classify and refine regions: sampling, losses and final detections of Fast and Faster R-CNN.

Shape letters: N images, P regions of an image, R regions of the batch, G ground-truth boxes, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.boxes import BoxCodec, batched_nms, box_iou, clip
from detkit.boxes.ordering import best_first
from detkit.features.preprocessing import ImageBatch
from detkit.features.roi_pooling import RoIPooler
from detkit.heads.box_normalizer import BoxNormalizer
from detkit.training.losses import box_regression_loss, cross_entropy
from detkit.training.matching import ignore_in_regions, match
from detkit.training.sampling import sample

#: Regions that are read together on a CPU when nothing learns: larger pieces of memory are fetched from the system anew
#: in every layer, which took 40 % of the time of 1,000 regions in MobileNetV2's last blocks.
REGIONS_CPU = 128


@dataclass
class RegionSettings:
    """The numbers of the second stage (papers.md 2.2, 2.3 and 2.5).

    Args:
        foreground_iou: regions from this IoU are foreground.
        background_iou: regions are background in [low, high).
        batch_size: regions sampled of each image.
        positive_fraction: at most this share of them foreground.
        box_weights: of the `BoxCodec`; 10, 10, 5, 5 is 1 / (.1, .1, .2, .2).
        box_loss, beta: see `box_regression_loss`.
        ignore_threshold: background regions of which this share lies in a crowd or difficult region do not count.
        score_threshold: detections with a lower score are dropped.
        max_candidates: best detections of each class and image that enter suppression; None: all.
        nms_threshold: IoU within a class above which the lower one is suppressed.
        max_detections: kept of each image.
        min_detection_size: detections with a shorter side are dropped, in the batch's pixels.
    """

    foreground_iou: float = 0.5
    background_iou: tuple[float, float] = (0.0, 0.5)
    batch_size: int = 512
    positive_fraction: float = 0.25
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    box_loss: str = "smooth_l1"
    beta: float = 1 / 9
    ignore_threshold: float = 0.5
    score_threshold: float = 0.05
    max_candidates: int | None = None
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_detection_size: float = 0.01


class RegionClassifier(nn.Module):
    """RoI pooling, box head and predictor, with what training and detection need around them.

    Args:
        pooler: from feature maps to regions.
        box_head: from pooled regions to vectors.
        box_predictor: from vectors to logits (R, K + 1) and deltas (R, K + 1, 4).
        settings: see `RegionSettings`.
    """

    def __init__(self, pooler: RoIPooler, box_head: nn.Module, box_predictor: nn.Module, settings: RegionSettings):
        super().__init__()
        self.pooler, self.box_head, self.box_predictor = pooler, box_head, box_predictor
        self.settings = settings
        self.codec = BoxCodec(settings.box_weights)
        self.normalizer: BoxNormalizer | None = None
        self.sample = sample

    def normalize_per_class(self, num_classes: int) -> BoxNormalizer:
        """Scale regression targets by statistics of each class instead of by ``box_weights``."""
        self.codec, self.normalizer = BoxCodec(), BoxNormalizer(num_classes)
        return self.normalizer

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K + 1, 4) for N tensors of boxes (P_i, 4) in the batch's pixels."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _on_cpu(features):
            return self.box_predictor(self.box_head(self.pooler(features, boxes)))
        parts = [
            self.box_predictor(self.box_head(self.pooler([level[i : i + 1] for level in features], [some])))
            for i, own in enumerate(boxes)
            for some in own.split(REGIONS_CPU)
        ]
        return torch.cat([logits for logits, _ in parts]), torch.cat([deltas for _, deltas in parts])

    def losses(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        usable: list[Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        regions: list[Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses over a sample of each image's regions, ground truth joined to the proposals.

        Args:
            features: maps of the batch.
            proposals: N tensors (P_i, 4), in the batch's pixels.
            usable: N tensors bool (P_i,); False marks padding.
            boxes, labels: N tensors (G_i, 4) and (G_i,) from 1 to K.
            regions: N tensors (R_i, 4) in which background does not count (crowds, difficult objects).

        Returns:
            ``loss_classifier`` and ``loss_box_reg``, both over the number of sampled regions of the batch, and the
            sampler's health: foreground and background per image, the ground truths' mean best IoU with a proposal,
            and the share of them with one of 0.5 and more (NaN where the batch has no ground truth).
        """
        s, sampled, best = self.settings, [], []
        for image in zip(proposals, usable, boxes, labels, regions, strict=True):
            chosen, found = self._sample(*image)
            sampled.append(chosen)
            best.append(found)
        rois, truth, target, positive, valid = zip(*sampled, strict=True)
        logits, deltas = self(features, list(rois))
        roi, truth, target, positive, valid = (torch.cat(p) for p in (rois, truth, target, positive, valid))
        deltas = deltas.gather(1, target[:, None, None].expand(-1, 1, 4))[:, 0]
        if s.box_loss == "giou":
            predicted, wanted = self._decode(deltas, roi, target), truth
        else:
            predicted, wanted = deltas, self._encode(truth, roi, target)
        count = valid.sum().clamp(min=1)
        losses = {
            "loss_classifier": cross_entropy(logits, target, valid),
            "loss_box_reg": box_regression_loss(predicted, wanted, positive & valid, count, s.box_loss, s.beta),
        }
        found = torch.cat(best)
        health = {
            "roi_foreground": (positive & valid).sum() / len(boxes),
            "roi_background": (~positive & valid).sum() / len(boxes),
            "roi_mean_best_iou": found.mean(),
            "proposal_recall_50": (found >= 0.5).float().mean(),
        }
        return losses, health

    @torch.no_grad()
    def _sample(
        self, proposals: Tensor, usable: Tensor, boxes: Tensor, labels: Tensor, regions: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Sampled regions of one image with their ground truth, and each ground truth's best IoU."""
        s = self.settings
        low, high = s.background_iou
        candidates = torch.cat([proposals, boxes])
        usable = torch.cat([usable, usable.new_ones(len(boxes))])
        iou = box_iou(boxes, candidates)
        matches = ignore_in_regions(
            match(iou, s.foreground_iou, high, low_quality=False), candidates, regions, s.ignore_threshold
        )
        unused = ~usable | ((matches.label == 0) & (matches.iou < low))
        chosen = self.sample(matches.label.masked_fill(unused, -1), s.batch_size, s.positive_fraction)
        roi, index = candidates[chosen.index], matches.index[chosen.index]
        if len(boxes):
            truth, target = boxes[index], torch.where(chosen.positive, labels[index], 0)
        else:
            truth, target = roi, torch.zeros_like(index)
        own = iou[:, : len(proposals)].masked_fill(~usable[: len(proposals)], 0)
        best = own.amax(1) if own.shape[1] else own.new_zeros(len(boxes))
        return (roi, truth, target, chosen.positive, chosen.valid), best

    def _encode(self, boxes: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """What is to be predicted (R, 4) for regions of these classes (R,)."""
        deltas = self.codec.encode(boxes, rois)
        return deltas if self.normalizer is None else self.normalizer.normalize(deltas, labels)

    def _decode(self, predicted: Tensor, rois: Tensor, labels: Tensor) -> Tensor:
        """The boxes (R, 4) that predictions for these classes (R,) mean."""
        deltas = predicted if self.normalizer is None else self.normalizer.restore(predicted, labels)
        return self.codec.decode(deltas, rois)

    def detect(self, features: list[Tensor], proposals: list[Tensor], images: ImageBatch) -> list[dict[str, Tensor]]:
        """Detections of each image from its proposals (P_i, 4), in the original image's pixels, best first."""
        logits, deltas = self(features, proposals)
        counts = [len(p) for p in proposals]
        return [
            self._detect_one(score, delta, boxes, images, i)
            for i, (score, delta, boxes) in enumerate(
                zip(logits.softmax(1).split(counts), deltas.split(counts), proposals, strict=True)
            )
        ]

    def _detect_one(
        self, scores: Tensor, deltas: Tensor, proposals: Tensor, images: ImageBatch, index: int
    ) -> dict[str, Tensor]:
        s = self.settings
        scores = scores[:, 1:]  # without background
        good = scores > s.score_threshold
        if s.max_candidates is not None:
            best = scores.topk(min(s.max_candidates, len(scores)), dim=0).indices
            good &= torch.zeros_like(good).scatter(0, best, True)
        region, label = torch.where(good)
        scores = scores[region, label]
        boxes = clip(self._decode(deltas[region, label + 1], proposals[region], label + 1), images.sizes[index])
        (large,) = torch.where(((boxes[:, 2:] - boxes[:, :2]) >= s.min_detection_size).all(1))
        boxes, scores, label = boxes[large], scores[large], label[large]
        keep = batched_nms(boxes, scores, label, s.nms_threshold).sort().values
        keep = keep[best_first(scores[keep], len(scores))[: s.max_detections]]
        return {
            "boxes": images.to_original(boxes[keep], index),
            "scores": scores[keep],
            "labels": label[keep] + 1,
        }


def _on_cpu(features: list[Tensor]) -> bool:
    """Whether these are plain maps on the CPU; the pyramid of a test at several scales is read in one go."""
    return isinstance(features, list) and bool(features) and features[0].device.type == "cpu"
