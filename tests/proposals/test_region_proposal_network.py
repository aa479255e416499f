"""Labels and losses of the region proposal network, held to plain readings of the authors' code."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes import AnchorGenerator, box_iou
from detkit.proposals import RegionProposalNetwork
from detkit.proposals.region_proposal_network import RPNOutput
from detkit.training import Samples, sample
from detkit.types import Targets

from .conftest import NOTHING, images, network, output_of


def exact_iou(a: list[float], b: list[float]) -> Fraction:
    """IoU of boxes of whole or half pixels, without rounding."""
    a, b = [Fraction(v) for v in a], [Fraction(v) for v in b]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, Fraction(0)) * max(height, Fraction(0))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def authors_labels(anchors: Tensor, truths: Tensor, size: tuple[int, int]) -> list[int]:
    """anchor_target_layer.py before its sampling, in half-open coordinates."""
    height, width = size
    labels = [-1] * len(anchors)
    inside = [
        i for i, (x1, y1, x2, y2) in enumerate(anchors.tolist()) if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height
    ]
    overlaps = {i: [exact_iou(anchors[i].tolist(), t) for t in truths.tolist()] for i in inside}
    for i in inside:
        if max(overlaps[i]) < Fraction(3, 10):
            labels[i] = 0
    for t in range(len(truths)):
        best = max(overlaps[i][t] for i in inside)
        for i in inside:
            if overlaps[i][t] == best:  # every anchor that ties
                labels[i] = 1
    for i in inside:
        if max(overlaps[i]) >= Fraction(7, 10):
            labels[i] = 1
    return labels


def test_labels_are_those_of_the_authors_code() -> None:
    rpn = network(straddle=0.0)
    size = (256, 320)
    (anchors,) = rpn.anchor_generator([(16, 20)], size)
    truths = torch.tensor(
        [
            [8.0, 8, 136, 136],  # near an anchor of 128
            [100, 60, 164, 124],
            [200, 30, 214, 44],  # smaller than any anchor: low quality, and its best anchors tie
            [30, 200, 300, 222],  # very wide: low quality
            [250, 150, 314, 246],
            [0, 150, 20, 182],  # at the border: its best anchors reach out, so its best one inside is taken
        ]
    )
    labels = rpn.label(anchors, truths, NOTHING, size).label
    expected = authors_labels(anchors, truths, size)
    assert labels.tolist() == expected
    assert {-1, 0, 1} == set(expected)
    iou = box_iou(truths, anchors)
    positive = labels == 1
    assert (positive & (iou.amax(0) < 0.3)).any()  # a forced one that would be background
    ties = [(iou[t][positive] == iou[t][positive].max()).sum().item() for t in range(6)]
    assert max(ties) > 1


def test_a_forced_anchor_keeps_the_object_it_overlaps_most() -> None:
    """`argmax_overlaps` is not changed by a forced match (anchor_target_layer.py)."""
    rpn = network()
    anchors = torch.tensor([[0.0, 0, 100, 100], [200, 200, 210, 210]])
    truths = torch.tensor([[0.0, 0, 100, 90], [90, 90, 150, 150]])  # both objects' best anchor is the first
    matches = rpn.label(anchors, truths, NOTHING, (256, 256))
    assert matches.label.tolist() == [1, 0]
    assert matches.index[0].item() == 0


def test_anchors_may_straddle_the_border_unless_told_otherwise() -> None:
    anchors = torch.tensor([[-1.0, 0, 40, 40], [0, 0, 40, 40], [20, 20, 64, 65], [-20, -20, 10, 10]])
    truths = anchors[:3] + 0
    size = (64, 64)
    assert network().label(anchors, truths, NOTHING, size).label.tolist() == [1, 1, 1, 0]
    assert network(straddle=0.0).label(anchors, truths, NOTHING, size).label.tolist() == [-1, 1, -1, -1]
    assert network(straddle=1.0).label(anchors, truths, NOTHING, size).label.tolist() == [1, 1, 1, -1]


def test_background_in_crowds_and_difficult_objects_does_not_count() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [100, 100, 120, 120], [100, 100, 140, 120], [101, 100, 141, 120]])
    region = torch.tensor([[80.0, 80, 120, 160]])
    none = network().label(anchors, NOTHING, region, (200, 200)).label
    assert none.tolist() == [0, -1, -1, 0]  # outside, inside, half of it, less than half
    found = network().label(anchors, anchors[1:2], region, (200, 200)).label
    assert found.tolist() == [0, 1, -1, -1]  # an object in there is an object; IoUs of .5 and .46 are neither


def test_no_objects_make_everything_background() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20], [-5, 0, 20, 20]])
    assert network().label(anchors, NOTHING, NOTHING, (64, 64)).label.tolist() == [0, 0]
    assert network(straddle=0.0).label(anchors, NOTHING, NOTHING, (64, 64)).label.tolist() == [0, -1]


def test_256_anchors_of_which_at_most_128_are_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = network([[16.0, 32.0, 64.0]])
    batch = images((320, 320), (320, 320))
    every = torch.cat(rpn.anchor_generator([(20, 20)], (320, 320)))
    inside = every[(every[:, :2] >= 0).all(1) & (every[:, 2:] <= 320).all(1)]
    truths = [inside[::5], inside[:1]]  # hundreds of anchors are foreground, or a few
    sampled: list[tuple[Tensor, Samples]] = []

    def spy(labels: Tensor, *rest: Any) -> Samples:
        sampled.append((labels, sample(labels, *rest)))
        return sampled[-1][1]

    monkeypatch.setattr("detkit.proposals.region_proposal_network.sample", spy)
    _, stats = rpn.losses(output_of(rpn, batch), batch, Targets(truths, [], [NOTHING, NOTHING]))
    (many, first), (few, second) = sampled
    assert (many > 0).sum() > 128
    assert first.positive.sum() == 128 and second.positive.sum() == (few > 0).sum() < 128
    for labels, chosen in sampled:
        assert chosen.valid.all() and len(chosen.index.unique()) == 256
        assert torch.equal(labels[chosen.index], chosen.positive.long())
    assert stats["rpn_foreground"] == (128 + second.positive.sum()) / 2
    assert stats["rpn_foreground"] + stats["rpn_background"] == 256


def plain_losses(
    rpn: RegionProposalNetwork, output: RPNOutput, truths: list[Tensor], chosen: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """The two losses of anchors that were chosen, term by term: each over the number of chosen anchors."""
    objectness, regression, count = [], [], 0
    for i, (boxes, rows) in enumerate(zip(truths, chosen, strict=True)):
        iou = box_iou(boxes, output.anchors)
        for row in rows:
            count += 1
            best, index = iou[:, row].max(0)
            positive = best >= 0.7 or any(iou[t, row] == iou[t].max() for t in range(len(boxes)))
            objectness.append(F.binary_cross_entropy_with_logits(output.logits[i, row], torch.tensor(float(positive))))
            if positive:
                (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[index], output.anchors[row]
                w, h = a2 - a1, b2 - b1
                target = torch.stack(
                    (
                        ((x1 + x2) - (a1 + a2)) / 2 / w,
                        ((y1 + y2) - (b1 + b2)) / 2 / h,
                        ((x2 - x1) / w).log(),
                        ((y2 - y1) / h).log(),
                    )
                )
                for d in (output.deltas[i, row] - target).abs():  # smooth L1 with sigma 3, as in smooth_l1_loss_layer
                    regression.append(0.5 * 9 * d**2 if d < 1 / 9 else d - 0.5 / 9)
    return torch.stack(objectness).sum() / count, torch.stack(regression).sum() / count


def test_losses_are_over_the_number_of_sampled_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    rpn = network()
    batch = images((160, 192), (128, 160))
    output = output_of(rpn, batch)
    output = output._replace(logits=output.logits * 50, deltas=output.deltas * 30)
    truths = [torch.tensor([[10.0, 12, 80, 90], [100, 30, 150, 140]]), torch.tensor([[20.0, 20, 120, 70]])]
    labels = [rpn.label(output.anchors, t, NOTHING, s).label for t, s in zip(truths, batch.sizes, strict=True)]
    rows = [
        [*torch.where(labels[0] == 1)[0].tolist(), *torch.where(labels[0] == 0)[0][::9].tolist()],
        [*torch.where(labels[1] == 1)[0].tolist(), *torch.where(labels[1] == 0)[0][:5].tolist()],
    ]
    waiting = list(rows)

    def choose(labels: Tensor, *rest: Any) -> Samples:
        index = torch.tensor([*(one := waiting.pop(0)), 0, 1])  # and two empty places
        return Samples(index, labels[index] == 1, torch.arange(len(index)) < len(one))

    monkeypatch.setattr("detkit.proposals.region_proposal_network.sample", choose)
    losses, stats = rpn.losses(output, batch, Targets(truths, [], [NOTHING, NOTHING]))
    objectness, regression = plain_losses(rpn, output, truths, rows)
    torch.testing.assert_close(losses["loss_objectness"], objectness)
    torch.testing.assert_close(losses["loss_rpn_box_reg"], regression)
    assert stats["rpn_foreground"] + stats["rpn_background"] == sum(map(len, rows)) / 2


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "giou"])
def test_every_box_loss_teaches_the_same_boxes(kind: str) -> None:
    """Finite, with a gradient where there is an object, and falling to 0 as the deltas become right."""
    rpn = network(box_loss=kind)
    batch = images((160, 192))
    truths = torch.tensor([[10.0, 12, 80, 90], [100, 30, 150, 140]])
    output = output_of(rpn, batch)
    deltas = output.deltas.detach().requires_grad_()
    given = output._replace(deltas=deltas)
    losses, _ = rpn.losses(given, batch, Targets([truths], [], [NOTHING]))
    losses["loss_rpn_box_reg"].backward()
    matches = rpn.label(output.anchors, truths, NOTHING, (160, 192))
    assert losses["loss_rpn_box_reg"].isfinite() and losses["loss_rpn_box_reg"] > 0
    assert deltas.grad.isfinite().all()
    assert torch.equal(deltas.grad.any(2)[0], matches.label == 1)

    right = rpn.codec.encode(truths[matches.index], output.anchors)[None]
    losses, _ = rpn.losses(output._replace(deltas=right), batch, Targets([truths], [], [NOTHING]))
    assert losses["loss_rpn_box_reg"].abs() < 1e-5


def test_losses_without_objects_have_a_graph() -> None:
    rpn = network()
    batch = images((64, 64))
    losses, stats = rpn.losses(output_of(rpn, batch), batch, Targets([NOTHING], [], [NOTHING]))
    sum(losses.values()).backward()
    assert losses["loss_objectness"] > 0 and losses["loss_rpn_box_reg"] == 0
    assert stats["rpn_foreground"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())


def test_losses_where_no_anchor_may_be_sampled_are_zero() -> None:
    rpn = network(straddle=0.0)  # every anchor of 32 and more reaches out of so small an image
    batch = images((16, 16))
    losses, _ = rpn.losses(output_of(rpn, batch), batch, Targets([torch.tensor([[2.0, 2, 9, 9]])], [], [NOTHING]))
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]


def test_score_maps_hold_each_anchors_objectness_where_it_lies() -> None:
    generator = AnchorGenerator([[16.0, 32.0], [64.0, 128.0]], [0.5, 1.0], strides=[16, 32])
    rpn = RegionProposalNetwork(8, generator)
    batch = images((96, 128), (64, 128))
    features = [torch.randn(2, 8, 6, 8), torch.randn(2, 8, 3, 4)]
    output = rpn(features, batch)
    maps = rpn.score_maps(output, features)
    assert [tuple(each.shape) for each in maps] == [(2, 4, 6, 8), (2, 4, 3, 4)]
    scores = output.logits.sigmoid()
    first = 0
    for stride, (height, width), scored in zip((16, 32), ((6, 8), (3, 4)), maps, strict=True):
        for row in range(height):
            for column in range(width):
                for anchor in range(4):
                    index = first + (row * width + column) * 4 + anchor
                    assert torch.equal(scored[:, anchor, row, column], scores[:, index])
                    centre = (output.anchors[index, :2] + output.anchors[index, 2:]) / 2
                    assert centre.tolist() == [column * stride, row * stride]
        first += height * width * 4
