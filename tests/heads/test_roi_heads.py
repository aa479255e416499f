"""Sampling and losses of the second stage, held to plain readings of the authors' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes import box_iou
from detkit.training import Samples, sample

from .conftest import NO_LABELS, NOTHING, classifier, losses_of, some_boxes


class Spy:
    """Samples as ours does, and keeps what was asked and chosen."""

    def __init__(self) -> None:
        self.labels: list[Tensor] = []
        self.chosen: list[Samples] = []

    def __call__(self, labels: Tensor, *rest: Any) -> Samples:
        self.labels.append(labels)
        self.chosen.append(sample(labels, *rest))
        return self.chosen[-1]


@pytest.mark.parametrize("band", [(0.0, 0.5), (0.1, 0.5), (0.1, 0.4)])
def test_sampling_is_that_of_the_authors_code(band: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """proposal_target_layer.py and, with a band that begins at 0.1, Fast R-CNN's minibatch.py."""
    low, high = band
    truths = torch.tensor([[20.0, 20, 100, 90], [110, 60, 180, 190]])
    near = truths.repeat(60, 1) + torch.randn(120, 4) * 12
    proposals = torch.cat((near, some_boxes(400)))
    heads = classifier(background_iou=band, batch_size=128)
    spy = Spy()
    monkeypatch.setattr("detkit.heads.roi_heads.sample", spy)
    _, stats = losses_of(heads, [proposals], [truths], [torch.tensor([1, 3])])

    everything = torch.cat((proposals, truths))  # the objects themselves are among the regions
    best = box_iou(truths, everything).amax(0)
    foreground = [i for i in range(len(everything)) if best[i] >= 0.5]
    background = [i for i in range(len(everything)) if low <= best[i] < high]
    assert torch.where(spy.labels[0] == 1)[0].tolist() == foreground
    assert torch.where(spy.labels[0] == 0)[0].tolist() == background
    assert {520, 521} < set(foreground) and len(foreground) > 32

    chosen = spy.chosen[0]
    assert chosen.valid.all() and len(chosen.index.unique()) == 128
    assert set(chosen.index[chosen.positive].tolist()) <= set(foreground)
    assert set(chosen.index[~chosen.positive].tolist()) <= set(background)
    assert (stats["roi_foreground"], stats["roi_background"]) == (32, 96)


def test_a_short_batch_counts_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    truths = torch.tensor([[20.0, 20, 100, 90]])
    proposals = torch.tensor([[20.0, 20, 100, 80], [150, 150, 190, 190], [22, 20, 100, 90], [0, 0, 10, 10]])
    mask = torch.tensor([True, True, True, False])  # the last is padding
    heads = classifier(batch_size=64)
    spy = Spy()
    monkeypatch.setattr("detkit.heads.roi_heads.sample", spy)
    losses, stats = losses_of(heads, [proposals], [truths], [torch.tensor([2])], valid=[mask])
    assert spy.labels[0].tolist() == [1, 0, 1, -1, 1]
    assert (stats["roi_foreground"], stats["roi_background"]) == (3, 1)
    rows = [0, 2, 4, 1]
    logits, _ = heads.box_predictor(torch.cat((proposals, truths))[rows] / 100)
    torch.testing.assert_close(losses["loss_classifier"], F.cross_entropy(logits, torch.tensor([2, 2, 2, 0])))


def test_crowds_and_difficult_objects_are_neither_object_nor_background(monkeypatch: pytest.MonkeyPatch) -> None:
    region = torch.tensor([[100.0, 100, 200, 200]])
    proposals = torch.tensor([[100.0, 100, 150, 150], [0, 0, 50, 50], [80, 100, 120, 200], [70, 100, 120, 200]])
    heads = classifier()
    spy = Spy()
    monkeypatch.setattr("detkit.heads.roi_heads.sample", spy)
    losses_of(heads, [proposals], [NOTHING], [NO_LABELS], [region])
    assert spy.labels[0].tolist() == [-1, 0, -1, 0]


def test_stats_tells_how_well_proposals_cover_the_objects() -> None:
    truths = [torch.tensor([[0.0, 0, 100, 100], [100, 100, 200, 200]]), torch.tensor([[0.0, 0, 50, 50]])]
    proposals = [torch.tensor([[0.0, 0, 100, 60], [100, 100, 200, 140]]), torch.tensor([[0.0, 0, 50, 25]])]
    labels = [torch.tensor([1, 2]), torch.tensor([1])]
    heads = classifier()
    _, stats = losses_of(heads, proposals, truths, labels)
    assert stats["roi_mean_best_iou"].item() == pytest.approx((0.6 + 0.4 + 0.5) / 3)
    assert stats["proposal_recall_50"].item() == pytest.approx(2 / 3)
    padded = [torch.tensor([False, True]), torch.tensor([False])]  # padding finds nothing
    _, stats = losses_of(heads, proposals, truths, labels, valid=padded)
    assert stats["roi_mean_best_iou"].item() == pytest.approx(0.4 / 3)


def fixed_sample(labels: Tensor, *rest: Any) -> Samples:
    index = torch.cat((torch.where(labels > 0)[0], torch.where(labels == 0)[0]))
    return Samples(index, labels[index] > 0, torch.ones(len(index), dtype=torch.bool))


@pytest.mark.parametrize(("kind", "beta"), [("smooth_l1", 1 / 9), ("smooth_l1", 1.0), ("l1", 1.0), ("giou", 1.0)])
def test_losses_equal_a_plain_computation(kind: str, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    truths = [torch.tensor([[20.0, 20, 100, 90], [110, 60, 180, 190]]), torch.tensor([[30.0, 50, 120, 150]])]
    labels = [torch.tensor([3, 1]), torch.tensor([2])]
    proposals = [torch.cat((t.repeat(8, 1) + torch.randn(len(t) * 8, 4) * 6, some_boxes(15))) for t in truths]
    heads = classifier(box_loss=kind, beta=beta, box_loss_weight=3.0)
    monkeypatch.setattr("detkit.heads.roi_heads.sample", fixed_sample)
    losses, _ = losses_of(heads, proposals, truths, labels)

    classification, regression, count = 0.0, 0.0, 0
    for boxes, own, regions in zip(truths, labels, proposals, strict=True):
        for roi in torch.cat((regions, boxes)):
            iou = box_iou(boxes, roi[None])[:, 0]
            target = own[iou.argmax()].item() if iou.max() >= 0.5 else 0
            logits, deltas = (x[0] for x in heads.box_predictor(roi[None] / 100))
            classification += torch.logsumexp(logits, 0) - logits[target]
            count += 1
            if target == 0:
                continue
            truth, given = boxes[iou.argmax()], deltas[target]  # the deltas of the object's own class
            w, h = roi[2] - roi[0], roi[3] - roi[1]
            centre = torch.stack(((roi[0] + roi[2]) / 2, (roi[1] + roi[3]) / 2))
            side, wanted = torch.stack((w, h)), truth[2:] - truth[:2]
            if kind == "giou":
                middle, extent = given[:2] / 10 * side + centre, (given[2:] / 5).exp() * side
                box = torch.cat((middle - extent / 2, middle + extent / 2))
                around = (torch.maximum(box, truth)[2:] - torch.minimum(box, truth)[:2]).prod()
                shared = (torch.minimum(box, truth)[2:] - torch.maximum(box, truth)[:2]).clamp(min=0).prod()
                union = extent.prod() + wanted.prod() - shared
                regression += 1 - shared / union + (around - union) / around
            else:
                shift = ((truth[:2] + truth[2:]) / 2 - centre) / side * 10  # stds .1 .1 .2 .2 (papers.md 2.3)
                wrong = (given - torch.cat((shift, (wanted / side).log() * 5))).abs()
                linear = wrong if kind == "l1" else torch.where(wrong < beta, wrong**2 / 2 / beta, wrong - beta / 2)
                regression += linear.sum()
    torch.testing.assert_close(losses["loss_classifier"], classification / count)
    torch.testing.assert_close(losses["loss_box_reg"], 3 * regression / count, rtol=1e-4, atol=1e-5)


def test_only_the_deltas_of_an_objects_own_class_learn() -> None:
    heads = classifier()
    proposals = torch.tensor([[20.0, 20, 100, 80], [150, 150, 190, 190]])
    losses, _ = losses_of(heads, [proposals], [torch.tensor([[20.0, 20, 100, 90]])], [torch.tensor([2])], [NOTHING])
    losses["loss_box_reg"].backward()
    learns = heads.box_predictor.delta.bias.grad.view(4, 4).any(1)
    assert learns.tolist() == [False, False, True, False]


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "giou"])
@pytest.mark.parametrize("proposals", [NOTHING, torch.tensor([[10.0, 10, 60, 60]])])
def test_losses_without_objects(kind: str, proposals: Tensor) -> None:
    heads = classifier(box_loss=kind)
    losses, stats = losses_of(heads, [proposals], [NOTHING], [NO_LABELS])
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0
    assert (losses["loss_classifier"] > 0) == bool(len(proposals))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert stats["roi_mean_best_iou"].isnan() and stats["proposal_recall_50"].isnan()


def test_an_object_without_any_proposal_still_teaches() -> None:
    heads = classifier()
    losses, stats = losses_of(heads, [NOTHING], [torch.tensor([[9.0, 9, 40, 40]])], [torch.tensor([1])])
    assert losses["loss_classifier"] > 0
    assert (stats["roi_foreground"], stats["proposal_recall_50"]) == (1, 0)
