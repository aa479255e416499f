"""Region proposal network (Ren et al. 2015, section 3.1): boxes and objectness from the feature maps themselves.

Shape letters: N images, L levels, A anchors of an image (all levels), P proposals, G ground-truth boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from detkit.boxes import AnchorGenerator, BoxCodec, box_iou, clip, group_order, kept_by_nms
from detkit.errors import ConfigError
from detkit.features.layers import normal_
from detkit.features.preprocessing import ImageBatch
from detkit.settings import check_choice, check_range
from detkit.training.losses import BOX_LOSSES, binary_cross_entropy, box_regression_loss
from detkit.training.sampling import Matches, ignore_background, match, sample
from detkit.types import Regions, Targets


@dataclass(frozen=True)
class RPNSettings:
    """The region proposal network (papers.md 2.3 and 2.5); counts of proposals are pairs (training, otherwise).

    Args:
        convolutions: 3x3 convolutions in the head.
        channels: their channels; null: those of the features.
        foreground_iou: anchors from this IoU are foreground, and so are those that have the best IoU of a ground truth.
        background_iou: anchors whose best IoU is below are background; those between are not trained on.
        batch_size: anchors sampled of each image.
        positive_fraction: at most this share of them foreground.
        pre_nms: best anchors of each level that enter suppression: [training, otherwise].
        post_nms: proposals kept of each image: [training, otherwise].
        nms_threshold: IoU above which the lower proposal is suppressed.
        min_size: proposals with a shorter side are dropped, in pixels of the original image.
        score_threshold: proposals with a lower objectness (0-1) are dropped.
        straddle: in training, anchors that reach further out of the image than this many pixels are left out (0 in
            the paper); null: none is.
        box_loss: smooth_l1, l1, l2 or giou.
        box_loss_weight: factor of it in the sum of the losses.
        beta: where smooth L1 turns linear; 1/9 is the paper's sigma 3.
    """

    convolutions: int = 1
    channels: int | None = None
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    batch_size: int = 256
    positive_fraction: float = 0.5
    pre_nms: tuple[int, int] = (2000, 1000)
    post_nms: tuple[int, int] = (2000, 1000)
    nms_threshold: float = 0.7
    min_size: float = 0.0
    score_threshold: float = 0.0
    straddle: float | None = None
    box_loss: str = "smooth_l1"
    box_loss_weight: float = 1.0
    beta: float = 1 / 9

    def __post_init__(self) -> None:
        check_choice("rpn.box_loss", self.box_loss, BOX_LOSSES)
        check_range("rpn.box_loss_weight", self.box_loss_weight, 0)
        for name in ("foreground_iou", "positive_fraction", "nms_threshold", "score_threshold"):
            check_range(f"rpn.{name}", getattr(self, name), 0, 1)
        if not 0 <= self.background_iou <= self.foreground_iou:
            raise ConfigError(
                f"rpn.background_iou {self.background_iou} must be at least 0 and not above rpn.foreground_iou "
                f"{self.foreground_iou}"
            )
        for name, most in (("convolutions", 64), ("channels", 65536), ("batch_size", math.inf)):
            check_range(f"rpn.{name}", getattr(self, name), 1, most)
        for name in ("pre_nms", "post_nms"):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < 1:
                raise ConfigError(f"rpn.{name}: {list(pair)} must be two numbers, [training, otherwise], 1 or more")


class RPNOutput(NamedTuple):
    """What the network says about every anchor.

    anchors: (A, 4); per_level: anchors of each level; logits: (N, A); deltas: (N, A, 4).
    """

    anchors: Tensor
    per_level: list[int]
    logits: Tensor
    deltas: Tensor


class Proposals(NamedTuple):
    """Boxes (P, 4) of an image in the batch's pixels, best first, and their objectness (P,), 0-1.

    A score of -1 marks padding: a box that was suppressed, too small, or scored too low. With it images have as many
    proposals each, and no shape depends on values, for which the host would wait.
    """

    boxes: Tensor
    scores: Tensor

    @property
    def valid(self) -> Tensor:
        """bool (P,): False for padding."""
        return self.scores >= 0


class ProposalBatch(Sequence[Proposals]):
    """The proposals of N images, with as many rows each: a sequence of `Proposals`.

    Args:
        boxes, scores: (N, P, 4) and (N, P).
        at_most: how many of them are no padding, at most.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, at_most: int) -> None:
        self.boxes, self.scores, self.at_most = boxes, scores, at_most

    @classmethod
    def of(cls, images: Sequence[Proposals]) -> ProposalBatch:
        """The proposals of each image, filled up to the most of them."""
        if isinstance(images, ProposalBatch):
            return images
        if len(images) == 1:
            boxes, scores = images[0]
            return cls(boxes[None], scores[None], scores.shape[0])
        boxes = pad_sequence([each.boxes for each in images], batch_first=True)
        scores = pad_sequence([each.scores for each in images], batch_first=True, padding_value=-1.0)
        return cls(boxes, scores, sum(len(each.scores) for each in images))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Proposals:  # type: ignore[override]
        return Proposals(self.boxes[index], self.scores[index])

    def regions(self) -> Regions:
        """All of them, with as little padding as can be known without a wait: none of a batch of one image."""
        per_image = self.scores.shape[1]
        scores = self.scores.flatten()
        index = group_order((scores < 0).long())[: torch.sym_min(self.at_most, scores.shape[0])]
        return Regions(self.boxes.flatten(0, 1)[index], index // per_image, scores[index] >= 0)


class RPNHead(nn.Module):
    """3x3 convolutions, then for each anchor one objectness logit and four deltas; the same for every level.

    The paper's softmax over two logits a and b is a sigmoid of their difference, so one logit is enough.
    """

    def __init__(self, channels: int, num_anchors: int, convolutions: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or channels
        widths = [channels] + [hidden] * convolutions
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))
                for inputs, outputs in pairwise(widths)
            )
        )
        self.cls_logits = nn.Conv2d(hidden, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(hidden, num_anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                normal_(layer, 0.01)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, A) and deltas (N, A, 4), float32, for maps [(N, C, H, W), ...]: level, row, column, anchor."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(feature.shape[0], -1, 4))
        return torch.cat(logits, 1).float(), torch.cat(deltas, 1).float()


class RegionProposalNetwork(nn.Module):
    """Anchors, as many at each level, the head, the selection of proposals, and the two losses."""

    def __init__(self, channels: int, anchor_generator: AnchorGenerator, settings: RPNSettings = RPNSettings()) -> None:
        super().__init__()
        if len(set(anchor_generator.num_anchors)) != 1:
            raise ConfigError(
                f"the RPN's head is shared by all levels, so each needs as many anchors; there are "
                f"{anchor_generator.num_anchors}: give as many sizes for each feature map"
            )
        self.anchor_generator = anchor_generator
        self.settings = settings
        num_anchors = anchor_generator.num_anchors[0]
        self.head = RPNHead(channels, num_anchors, settings.convolutions, settings.channels)
        self.codec = BoxCodec()

    def forward(self, features: list[Tensor], images: ImageBatch) -> RPNOutput:
        """Score every anchor; see `RPNOutput`."""
        logits, deltas = self.head(features)
        sizes = [(f.shape[-2], f.shape[-1]) for f in features]
        anchors = self.anchor_generator(sizes, (images.tensor.shape[-2], images.tensor.shape[-1]), logits.device)
        return RPNOutput(torch.cat(anchors), [a.shape[0] for a in anchors], logits, deltas)

    @torch.no_grad()
    def score_maps(self, output: RPNOutput, features: list[Tensor]) -> list[Tensor]:
        """The objectness of every anchor where it lies on its map, for each of the maps of `forward`.

        Returns:
            float32 (N, A, H, W) in 0..1, for the A anchors of a cell in the generator's order.
        """
        parts = output.logits.sigmoid().split(output.per_level, dim=1)
        sizes = [feature.shape[-2:] for feature in features]
        return [part.unflatten(1, (*size, -1)).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]

    @torch.no_grad()
    def propose(self, output: RPNOutput, images: ImageBatch) -> ProposalBatch:
        """The best boxes of each image after suppression within each level.

        No gradient flows into the boxes' coordinates: this is what makes joint training approximate (section 3.2).
        """
        s = self.settings
        phase = 0 if self.training else 1
        boxes, scores, levels = [], [], []
        split = (
            part.split(output.per_level, dim) for part, dim in zip(output[:1] + output[2:], (0, 1, 1), strict=True)
        )
        for number, (anchors, logits, deltas) in enumerate(zip(*split, strict=True)):
            logits, best = logits.topk(torch.sym_min(s.pre_nms[phase], logits.shape[1]), dim=1)
            deltas = deltas.gather(1, best[:, :, None].expand(-1, -1, 4))
            boxes.append(self.codec.decode(deltas, anchors[best]))
            scores.append(logits.sigmoid())
            levels.append(torch.full_like(best, number))
        box, score, level = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1)
        limits, scales = (table.to(box.device, non_blocking=True) for table in (images.limits(), images.scales()))
        box = clip(box, limits[:, None])
        sides = box[..., 2:] - box[..., :2]
        least = s.min_size * scales[:, None, :2].prod(2, keepdim=True).sqrt()  # in the batch's pixels
        good = ((sides >= least) & (sides > 0)).all(2) & (score >= s.score_threshold)
        image = torch.arange(box.shape[0], device=box.device)[:, None]
        candidates = torch.where(good, score, -torch.inf)
        group = image * len(output.per_level) + level
        keep = kept_by_nms(box.flatten(0, 1), candidates.flatten(), group.flatten(), s.nms_threshold)
        kept = torch.zeros_like(group.flatten(), dtype=torch.bool).index_fill(0, keep, True).view_as(good)
        score, order = torch.where(kept & good, score, -1.0).sort(dim=1, descending=True, stable=True)
        order = order[:, : s.post_nms[phase]]
        box = box.gather(1, order[:, :, None].expand(-1, -1, 4))
        return ProposalBatch(box, score[:, : s.post_nms[phase]], keep.shape[0])

    def losses(
        self, output: RPNOutput, images: ImageBatch, targets: Targets
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses over a balanced sample of anchors of each image.

        Returns:
            ``loss_objectness`` and ``loss_rpn_box_reg``, both over the number of sampled anchors of the batch (so
            lambda = 1; papers.md 2.3), and the sampler's statistics: foreground and background anchors per image.
        """
        s = self.settings
        sampled = [
            self._sample(output, i, boxes, ignore_boxes, images.sizes[i])
            for i, (boxes, ignore_boxes) in enumerate(zip(targets.boxes, targets.ignore_boxes, strict=True))
        ]
        logits, predicted, target, positive, valid = map(torch.cat, zip(*sampled, strict=True))
        count = valid.sum().clamp(min=1)
        loss_rpn_box_reg = box_regression_loss(predicted, target, positive & valid, count, s.box_loss, s.beta)
        losses = {
            "loss_objectness": binary_cross_entropy(logits, positive, valid),
            "loss_rpn_box_reg": s.box_loss_weight * loss_rpn_box_reg,
        }
        stats = {
            "rpn_foreground": (positive & valid).sum() / len(sampled),
            "rpn_background": (~positive & valid).sum() / len(sampled),
        }
        return losses, stats

    @torch.no_grad()
    def label(self, anchors: Tensor, boxes: Tensor, ignore_boxes: Tensor, size: tuple[int, int]) -> Matches:
        """Foreground, background or neither for each of the anchors (A, 4); see `match`."""
        s = self.settings
        iou = box_iou(boxes, anchors)
        if s.straddle is not None:  # left out before the best anchor of each ground truth is looked for
            height, width = size
            low, high = anchors[:, :2] + s.straddle, anchors[:, 2:] - s.straddle
            inside = (low >= 0).all(1) & (high[:, 0] <= width) & (high[:, 1] <= height)
            iou = iou.masked_fill(~inside, 0)
        matches = match(iou, s.foreground_iou, s.background_iou, low_quality=True)
        matches = ignore_background(matches, anchors, ignore_boxes)
        if s.straddle is not None:
            matches = matches._replace(label=matches.label.masked_fill(~inside, -1))
        return matches

    def _sample(
        self, output: RPNOutput, index: int, boxes: Tensor, ignore_boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Of sampled anchors of one image: logits (n,), predictions and targets (n, 4), positive and valid (n,)."""
        matches = self.label(output.anchors, boxes, ignore_boxes, size)
        chosen = sample(matches.label, self.settings.batch_size, self.settings.positive_fraction)
        anchors = output.anchors[chosen.index]
        deltas = output.deltas[index][chosen.index]
        truth = boxes[matches.index[chosen.index]] if len(boxes) else anchors
        if self.settings.box_loss == "giou":
            predicted, target = self.codec.decode(deltas, anchors), truth
        else:
            predicted, target = deltas, self.codec.encode(truth, anchors)
        return output.logits[index][chosen.index], predicted, target, chosen.positive, chosen.valid
