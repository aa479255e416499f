"""The region proposal network: labels, losses and proposals held to plain readings of the authors' code."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detkit.boxes import AnchorGenerator, box_iou
from detkit.errors import ConfigError
from detkit.features import ImageBatch
from detkit.proposals import RegionProposalNetwork, RPNSettings
from detkit.proposals.region_proposal_network import RPNHead, RPNOutput
from detkit.training import Samples, sample

NOTHING = torch.zeros(0, 4)


def network(sizes: list[list[float]] | None = None, **settings: Any) -> RegionProposalNetwork:
    generator = AnchorGenerator(sizes or [[32.0, 64.0, 128.0]], [0.5, 1.0, 2.0], convention="paper", strides=[16])
    return RegionProposalNetwork(8, generator, RPNSettings(**settings))


def images(*sizes: tuple[int, int], scale: float = 1) -> ImageBatch:
    """A batch of images that were `scale` times smaller before."""
    tensor = torch.zeros(len(sizes), 3, *(max(s[i] for s in sizes) for i in (0, 1)))
    return ImageBatch(tensor, list(sizes), [(round(h / scale), round(w / scale)) for h, w in sizes])


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
        ]
    )
    labels = rpn.label(anchors, truths, NOTHING, size).label
    expected = authors_labels(anchors, truths, size)
    assert labels.tolist() == expected
    assert {-1, 0, 1} == set(expected)
    iou = box_iou(truths, anchors)
    positive = labels == 1
    assert (positive & (iou.amax(0) < 0.3)).any()  # a forced one that would be background
    ties = [(iou[t][positive] == iou[t][positive].max()).sum().item() for t in range(5)]
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


def output_of(rpn: RegionProposalNetwork, batch: ImageBatch) -> RPNOutput:
    height, width = (s // 16 for s in batch.tensor.shape[-2:])
    return rpn([torch.randn(len(batch.sizes), 8, height, width)], batch)


def test_256_anchors_of_which_at_most_128_are_foreground() -> None:
    rpn = network([[16.0, 32.0, 64.0]])
    batch = images((320, 320), (320, 320))
    every = torch.cat(rpn.anchor_generator([(20, 20)], (320, 320)))
    inside = every[(every[:, :2] >= 0).all(1) & (every[:, 2:] <= 320).all(1)]
    truths = [inside[::5], inside[:1]]  # hundreds of anchors are foreground, or a few
    sampled: list[tuple[Tensor, Samples]] = []

    def spy(labels: Tensor, *rest: Any) -> Samples:
        sampled.append((labels, sample(labels, *rest)))
        return sampled[-1][1]

    rpn.sample = spy
    _, health = rpn.losses(output_of(rpn, batch), batch, truths, [NOTHING, NOTHING])
    (many, first), (few, second) = sampled
    assert (many > 0).sum() > 128
    assert first.positive.sum() == 128 and second.positive.sum() == (few > 0).sum() < 128
    for labels, chosen in sampled:
        assert chosen.valid.all() and len(chosen.index.unique()) == 256
        assert torch.equal(labels[chosen.index], chosen.positive.long())
    assert health["rpn_foreground"] == (128 + second.positive.sum()) / 2
    assert health["rpn_foreground"] + health["rpn_background"] == 256


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


def test_losses_are_over_the_number_of_sampled_anchors() -> None:
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

    rpn.sample = choose
    losses, health = rpn.losses(output, batch, truths, [NOTHING, NOTHING])
    objectness, regression = plain_losses(rpn, output, truths, rows)
    torch.testing.assert_close(losses["loss_objectness"], objectness)
    torch.testing.assert_close(losses["loss_rpn_box_reg"], regression)
    assert health["rpn_foreground"] + health["rpn_background"] == sum(map(len, rows)) / 2


@pytest.mark.parametrize("kind", ["smooth_l1", "l1", "l2", "giou"])
def test_every_box_loss_teaches_the_same_boxes(kind: str) -> None:
    """Finite, with a gradient where there is an object, and falling to 0 as the deltas become right."""
    rpn = network(box_loss=kind)
    batch = images((160, 192))
    truths = torch.tensor([[10.0, 12, 80, 90], [100, 30, 150, 140]])
    output = output_of(rpn, batch)
    deltas = output.deltas.detach().requires_grad_()
    given = output._replace(deltas=deltas)
    losses, _ = rpn.losses(given, batch, [truths], [NOTHING])
    losses["loss_rpn_box_reg"].backward()
    matches = rpn.label(output.anchors, truths, NOTHING, (160, 192))
    assert losses["loss_rpn_box_reg"].isfinite() and losses["loss_rpn_box_reg"] > 0
    assert deltas.grad.isfinite().all()
    assert torch.equal(deltas.grad.any(2)[0], matches.label == 1)

    right = rpn.codec.encode(truths[matches.index], output.anchors)[None]
    losses, _ = rpn.losses(output._replace(deltas=right), batch, [truths], [NOTHING])
    assert losses["loss_rpn_box_reg"].abs() < 1e-5


def test_unknown_box_losses_are_refused() -> None:
    rpn = network(box_loss="huber")
    batch = images((64, 64))
    with pytest.raises(ConfigError, match="'huber'"):
        rpn.losses(output_of(rpn, batch), batch, [torch.tensor([[0.0, 0, 30, 30]])], [NOTHING])


def test_losses_without_objects_have_a_graph() -> None:
    rpn = network()
    batch = images((64, 64))
    losses, health = rpn.losses(output_of(rpn, batch), batch, [NOTHING], [NOTHING])
    sum(losses.values()).backward()
    assert losses["loss_objectness"] > 0 and losses["loss_rpn_box_reg"] == 0
    assert health["rpn_foreground"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())


def test_losses_where_no_anchor_may_be_sampled_are_zero() -> None:
    rpn = network(straddle=0.0)  # every anchor of 32 and more reaches out of so small an image
    batch = images((16, 16))
    losses, _ = rpn.losses(output_of(rpn, batch), batch, [torch.tensor([[2.0, 2, 9, 9]])], [NOTHING])
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]


# -- proposals ---------------------------------------------------------------------------------


def of_boxes(*levels: tuple[list[list[float]], list[float]]) -> RPNOutput:
    """What a network says that proposes these boxes with these objectness scores."""
    anchors = [torch.tensor(boxes).reshape(-1, 4) for boxes, _ in levels]
    scores = torch.cat([torch.tensor(scores) for _, scores in levels])
    count = len(scores)
    return RPNOutput(torch.cat(anchors), [len(a) for a in anchors], torch.logit(scores)[None], torch.zeros(1, count, 4))


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_sorted_and_inside_the_image(training: bool) -> None:
    rpn = network(nms_threshold=1.0).train(training)
    batch = images((100, 160), (90, 128))
    output = output_of(rpn, batch)
    output = output._replace(logits=torch.randn_like(output.logits), deltas=torch.randn_like(output.deltas))
    for proposals, (height, width) in zip(rpn.propose(output, batch), batch.sizes, strict=True):
        assert len(proposals.boxes) == len(proposals.scores) > 50
        assert torch.equal(proposals.scores, proposals.scores.sort(descending=True).values)
        boxes = proposals.boxes[proposals.usable]
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert not boxes.requires_grad


def test_boxes_are_decoded_from_their_own_anchors() -> None:
    rpn = network().eval()
    anchors = torch.tensor([[0.0, 0, 20, 10], [50, 50, 90, 90]])
    deltas = torch.tensor([[[0.5, 1, 0, 0], [0, 0, torch.log(torch.tensor(0.5)), 0]]])
    output = RPNOutput(anchors, [2], torch.tensor([[0.0, 2.0]]), deltas)
    (found,) = rpn.propose(output, images((100, 100)))
    torch.testing.assert_close(found.boxes, torch.tensor([[60.0, 50, 80, 90], [10, 10, 30, 20]]))
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.0]).sigmoid())


def test_the_smallest_side_is_in_pixels_of_the_original_image() -> None:
    boxes = [[0.0, 0, 31, 40], [50, 50, 82, 82], [100, 0, 140, 31.5], [150, 150, 150, 190]]
    output = of_boxes((boxes, [0.9, 0.8, 0.7, 0.6]))
    rpn = network(min_size=16).eval()
    (found,) = rpn.propose(output, images((200, 200), scale=2))  # 16 pixels are 32 here
    assert found.boxes.tolist() == [boxes[1]]
    (found,) = rpn.propose(output, images((200, 200)))
    assert found.boxes.tolist() == boxes[:3]  # an empty box never stays
    (found,) = rpn.train().propose(output, images((200, 200), scale=2))
    assert found.boxes[found.usable].tolist() == [boxes[1]]
    assert found.scores.tolist() == [pytest.approx(0.8), -1, -1, -1]  # what was dropped is marked, and comes last


def test_suppression_within_each_level_only() -> None:
    near = [[0.0, 0, 100, 100], [0, 0, 100, 80], [0, 0, 100, 60]]  # IoU .8, .6 with the first; .75 with each other
    output = of_boxes((near, [0.5, 0.9, 0.8]), (near[:1], [0.7]))
    (found,) = network(nms_threshold=0.7).eval().propose(output, images((100, 100)))
    assert found.boxes.tolist() == [near[1], near[0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7]))
    (found,) = network(nms_threshold=0.76).eval().propose(output, images((100, 100)))
    assert found.boxes.tolist() == [near[1], near[2], near[0]]


def test_what_is_dropped_suppresses_nothing() -> None:
    rpn = network(score_threshold=0.5)
    output = of_boxes(([[0.0, 0, 100, 100], [0, 0, 100, 99], [0, 100, 100, 200]], [0.4, 0.5, 0.3]))
    for training in (True, False):
        (found,) = rpn.train(training).propose(output, images((200, 200)))
        assert found.boxes[found.usable].tolist() == [[0, 0, 100, 99]]


@pytest.mark.parametrize("training", [True, False])
def test_counts_before_suppression_are_per_level_and_after_it_per_image(training: bool) -> None:
    apart = [[10.0 * i, 0, 10 * i + 9, 9] for i in range(8)]
    below = [[10.0 * i, 20, 10 * i + 9, 29] for i in range(5)]
    output = of_boxes(
        (apart, [0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98]),
        (below, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ([[0, 40, 9, 49]], [0.6]),
    )
    rpn = network(pre_nms=(4, 3), post_nms=(8, 6)).train(training)
    (found,) = rpn.propose(output, images((100, 100)))
    expected = [0.98, 0.97, 0.96, 0.95, 0.6, 0.5, 0.4, 0.3] if training else [0.98, 0.97, 0.96, 0.6, 0.5, 0.4]
    torch.testing.assert_close(found.scores, torch.tensor(expected))


@pytest.mark.parametrize("training", [True, False])
def test_no_usable_proposals(training: bool) -> None:
    rpn = network(score_threshold=0.99).train(training)
    (found,) = rpn.propose(of_boxes(([[0.0, 0, 9, 9]], [0.5])), images((64, 64)))
    assert not found.usable.any()
    assert found.boxes.shape == (int(training), 4)


# -- head --------------------------------------------------------------------------------------


def test_the_head_orders_anchors_by_row_column_and_anchor() -> None:
    """The same order as the anchors', for logits and for deltas, level after level."""
    head = RPNHead(4, 3)
    features = [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 2, 3)]
    logits, deltas = head(features)
    assert logits.shape == (2, 108) and deltas.shape == (2, 108, 4)
    hidden = head.conv(features[1])
    row, column, anchor = 1, 2, 1
    place = 90 + (row * 3 + column) * 3 + anchor
    assert torch.equal(logits[:, place], head.cls_logits(hidden)[:, anchor, row, column])
    assert torch.equal(deltas[:, place], head.bbox_pred(hidden)[:, 4 * anchor : 4 * anchor + 4, row, column])


def test_the_head_begins_as_the_papers_did() -> None:
    head = RPNHead(64, 9, depth=2, hidden=96)
    convolutions = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(64, 96), (96, 96), (96, 9), (96, 36)]
    for layer in convolutions:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()


def test_the_output_is_float32_for_half_features() -> None:
    rpn = network().bfloat16()
    output = rpn([torch.randn(1, 8, 4, 4).bfloat16()], images((64, 64)))
    assert output.logits.dtype == output.deltas.dtype == output.anchors.dtype == torch.float32


def test_levels_with_different_numbers_of_anchors_are_refused() -> None:
    generator = AnchorGenerator([[32.0], [64.0, 128.0]], [1.0])
    with pytest.raises(ConfigError, match=r"\[1, 2\]"):
        RegionProposalNetwork(8, generator)
