"""Proposals: which boxes are kept, in which order; and the head they come from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.boxes import AnchorGenerator
from detkit.errors import ConfigError
from detkit.proposals import ProposalBatch, Proposals, RegionProposalNetwork
from detkit.proposals.region_proposal_network import RPNHead, RPNOutput

from .conftest import images, network, output_of


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
        boxes = proposals.boxes[proposals.valid]
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
    assert found.boxes[found.valid].tolist() == [boxes[1]]
    (found,) = rpn.propose(output, images((200, 200)))
    assert found.boxes[found.valid].tolist() == boxes[:3]  # an empty box never stays
    (found,) = rpn.train().propose(output, images((200, 200), scale=2))
    assert found.boxes[found.valid].tolist() == [boxes[1]]
    assert found.scores.tolist() == [pytest.approx(0.8), -1, -1, -1]  # what was dropped is marked, and comes last


def test_suppression_within_each_level_only() -> None:
    near = [[0.0, 0, 100, 100], [0, 0, 100, 80], [0, 0, 100, 60]]  # IoU .8, .6 with the first; .75 with each other
    output = of_boxes((near, [0.5, 0.9, 0.8]), (near[:1], [0.7]))
    (found,) = network(nms_threshold=0.7).eval().propose(output, images((100, 100)))
    assert found.boxes[found.valid].tolist() == [near[1], near[0]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, -1, -1]))
    (found,) = network(nms_threshold=0.76).eval().propose(output, images((100, 100)))
    assert found.boxes[found.valid].tolist() == [near[1], near[2], near[0]]


def test_what_is_dropped_suppresses_nothing() -> None:
    rpn = network(score_threshold=0.5)
    output = of_boxes(([[0.0, 0, 100, 100], [0, 0, 100, 99], [0, 100, 100, 200]], [0.4, 0.5, 0.3]))
    for training in (True, False):
        (found,) = rpn.train(training).propose(output, images((200, 200)))
        assert found.boxes[found.valid].tolist() == [[0, 0, 100, 99]]


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
    proposals = rpn.propose(of_boxes(([[0.0, 0, 9, 9]], [0.5])), images((64, 64)))
    assert not proposals[0].valid.any()
    assert not proposals.regions().valid.any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_regions_are_all_proposals_with_little_padding(counts: list[int], unknown: int) -> None:
    """Unknown: how many more there might be."""
    given = [Proposals(torch.rand(count, 4), torch.rand(count)) for count in counts]
    batch = ProposalBatch.of(given)
    assert [int(each.valid.sum()) for each in batch] == counts
    regions = ProposalBatch(batch.boxes, batch.scores, batch.at_most + unknown).regions()
    valid = regions.valid
    assert torch.equal(regions.boxes[valid], torch.cat([each.boxes for each in given]))
    assert regions.image[valid].tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    assert (~valid).sum() <= unknown


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
    head = RPNHead(64, 9, convolutions=2, hidden=96)
    convolutions = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(64, 96), (96, 96), (96, 9), (96, 36)]
    for layer in convolutions:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()


def test_the_output_is_float32_for_half_features() -> None:
    rpn = network().bfloat16()
    output = rpn([torch.randn(1, 8, 4, 4).bfloat16()], images((64, 64)))
    assert output.logits.dtype == output.deltas.dtype == output.anchors.dtype == torch.float32


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="'huber'"):
        network(box_loss="huber")
    generator = AnchorGenerator([[32.0], [64.0, 128.0]], [1.0])
    with pytest.raises(ConfigError, match=r"\[1, 2\]"):
        RegionProposalNetwork(8, generator)
