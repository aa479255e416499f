"""Losses over samples of fixed size, in which some rows do not count.

Rows that do not count are replaced before anything is computed with them: a NaN or an infinity in them reaches neither
the loss nor a gradient. Without a row that counts a loss is 0 and has a graph, so that `backward` and DDP work on a
batch without objects. Everything is computed in float32 at least. Shape letters: N rows, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes.geometry import area, as_float
from detkit.errors import ConfigError

BOX_LOSSES = ("smooth_l1", "l1", "l2", "giou")


def cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Softmax cross entropy of ``logits`` (N, C), the mean over the rows that are ``valid``, bool (N,).

    ``labels`` are int64 (N,), in [0, C) where valid.
    """
    logits = torch.where(valid[:, None], as_float(logits), 0.0)
    labels = torch.where(valid, labels, 0)
    return _mean(F.cross_entropy(logits, labels, reduction="none"), valid)


def binary_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Sigmoid cross entropy of ``logits`` (N,), the mean over the rows that are ``valid``, bool (N,).

    ``targets`` (N,) are bool or in [0, 1].
    """
    logits = torch.where(valid, as_float(logits), 0.0)
    targets = torch.where(valid, targets.to(logits.dtype), 0.0)
    return _mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), valid)


def box_regression_loss(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    normalizer: Tensor | float,
    kind: str = "smooth_l1",
    beta: float = 1 / 9,
) -> Tensor:
    """The sum over the rows of ``mask`` of a distance between boxes or deltas, divided by ``normalizer``.

    Args:
        predicted, target: (N, 4).
        mask: bool (N,).
        normalizer: number of samples; 0 counts as 1.
        kind: "smooth_l1": quadratic below ``beta``, linear above; the RPN has beta 1/9 (sigma 3), the paper's box head
            1 (papers.md 2.3). "l1": the absolute difference. "l2": its square. "giou": 1 - generalised IoU (Rezatofighi
            et al. 2019), for decoded boxes x1 y1 x2 y2.
        beta: of "smooth_l1".

    Raises:
        ConfigError: for another kind.
    """
    if kind not in BOX_LOSSES:
        raise ConfigError(f"unknown box regression loss {kind!r}: use one of {', '.join(BOX_LOSSES)}")
    predicted, target = as_float(predicted), as_float(target)
    if kind == "giou":
        unit = torch.zeros(4, dtype=predicted.dtype, device=predicted.device)
        unit[2:] = 1  # rows that do not count become twice the same box, whose loss is 0
        loss = _giou_loss(*(torch.where(mask[:, None], boxes, unit) for boxes in (predicted, target)))
    else:
        predicted, target = (torch.where(mask[:, None], deltas, 0.0) for deltas in (predicted, target))
        if kind == "smooth_l1":
            loss = F.smooth_l1_loss(predicted, target, beta=beta, reduction="none")
        else:
            loss = (F.l1_loss if kind == "l1" else F.mse_loss)(predicted, target, reduction="none")
    if isinstance(normalizer, Tensor):
        normalizer = torch.where(normalizer == 0, torch.ones_like(normalizer), normalizer)
    elif normalizer == 0:
        normalizer = 1.0
    return loss.sum() / normalizer


def _giou_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - GIoU of a and b, row by row: (N, 4), (N, 4) -> (N,) in [0, 2]."""
    # `torchvision.ops.generalized_box_iou_loss` indexes by a mask, for which the host waits for the device.
    smallest = torch.finfo(a.dtype).eps
    shared = area(torch.cat((torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])), dim=1))
    around = area(torch.cat((torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:])), dim=1))
    union = area(a) + area(b) - shared
    giou = shared / union.clamp(min=smallest) - (around - union) / around.clamp(min=smallest)
    return 1 - giou


def _mean(loss: Tensor, valid: Tensor) -> Tensor:
    """The mean of the loss where it is valid; 0 if it is nowhere."""
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)
