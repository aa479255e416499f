"""Matching: torchvision's and the authors' rules, without asking the device for a value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torchvision.models.detection._utils import Matcher

from detkit.boxes import box_iou
from detkit.errors import ConfigError
from detkit.training import Matches, ignore_background, match

SEEDS = st.integers(0, 2**32 - 1)


def some_boxes(count: int, seed: int) -> torch.Tensor:
    """Boxes on a coarse grid, so that IoUs tie."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=generator)
    return torch.cat((corner, corner + torch.randint(2, 9, (count, 2), generator=generator)), dim=1).double()


def anchor_target_labels(iou: list[list[float]], positive: float, negative: float) -> list[int]:
    """The labels of anchor_target_layer.py before sampling, read as plain Python (papers.md 2.3).

    Its one oddity is left out: a truth that overlaps no anchor at all would tie with every anchor at IoU 0.
    """
    labels = []
    for anchor in range(len(iou[0])):
        overlaps = [row[anchor] for row in iou]
        label = -1
        if max(overlaps) < negative:
            label = 0
        if any(row[anchor] == max(row) and max(row) > 0 for row in iou):
            label = 1
        if max(overlaps) >= positive:
            label = 1
        labels.append(label)
    return labels


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 40))
def test_labels_are_those_of_the_authors_code(seed: int, truths: int, anchors: int) -> None:
    iou = box_iou(some_boxes(truths, seed), some_boxes(anchors, seed + 1))
    matches = match(iou, positive=0.7, negative=0.3, low_quality=True)
    assert matches.label.tolist() == anchor_target_labels(iou.tolist(), 0.7, 0.3)
    # The box target is the anchor's own best truth, for the forced ones too.
    assert torch.equal(matches.iou, iou.max(dim=0).values)
    assert torch.equal(iou.gather(0, matches.index[None])[0], matches.iou)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 6), st.integers(1, 40), st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5)]))
def test_equal_to_torchvisions_matcher(
    seed: int, truths: int, anchors: int, low_quality: bool, thresholds: tuple[float, float]
) -> None:
    iou = box_iou(some_boxes(truths, seed), some_boxes(anchors, seed + 1))
    iou = iou[iou.amax(dim=1) > 0]  # torchvision forces every anchor on a truth that none overlaps
    if len(iou) == 0:
        return
    theirs = Matcher(*thresholds, allow_low_quality_matches=low_quality)(iou)
    ours = match(iou, *thresholds, low_quality=low_quality)
    as_theirs = torch.where(ours.label == 1, ours.index, torch.where(ours.label == 0, -1, -2))
    assert torch.equal(as_theirs, theirs)


def test_a_truth_that_overlaps_nothing_forces_nothing() -> None:
    iou = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.1, 0.4]])
    assert match(iou, 0.7, 0.3, low_quality=True).label.tolist() == [1, 0, 1]
    assert match(iou, 0.7, 0.3, low_quality=False).label.tolist() == [-1, 0, -1]


def test_thresholds_themselves() -> None:
    iou = torch.tensor([[0.75, 0.25, 0.24]])
    assert match(iou, 0.75, 0.25, low_quality=False).label.tolist() == [1, -1, 0]


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_truths_or_no_boxes(shape: tuple[int, int], low_quality: bool) -> None:
    matches = match(torch.zeros(shape), 0.7, 0.3, low_quality)
    assert matches.index.tolist() == matches.label.tolist() == matches.iou.tolist() == [0] * shape[1]
    assert (matches.index.dtype, matches.label.dtype) == (torch.int64, torch.int64)


def test_thresholds_the_wrong_way_round_are_told() -> None:
    with pytest.raises(ConfigError, match=r"positive \(0.3\).*negative \(0.7\)"):
        match(torch.zeros(1, 1), 0.3, 0.7, low_quality=False)


def test_background_in_a_crowd_is_left_out_and_foreground_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [8, 0, 12, 4], [9, 0, 13, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    regions = torch.tensor([[0.0, 0, 10, 10], [90, 90, 91, 91]])
    matches = Matches(torch.arange(5), torch.tensor([0, 0, 0, 1, -1]), torch.rand(5))
    left = ignore_background(matches, boxes, regions)
    assert left.label.tolist() == [-1, -1, 0, 1, -1]  # of the second box half is inside, of the third a quarter
    assert torch.equal(left.index, matches.index)
    assert torch.equal(left.iou, matches.iou)
    assert ignore_background(matches, boxes, regions[:0]).label.tolist() == matches.label.tolist()
    empty = Matches(*(field[:0] for field in matches))
    assert ignore_background(empty, boxes[:0], regions).label.shape == (0,)


def test_the_device_is_never_waited_for() -> None:
    """Fake tensors have no values: whatever would need one raises."""
    with FakeTensorMode():
        with pytest.raises(DynamicOutputShapeException):
            torch.rand(3).nonzero()
        truths, boxes = torch.rand(5, 4), torch.rand(100, 4)
        matches = match(box_iou(truths, boxes), 0.7, 0.3, low_quality=True)
        matches = ignore_background(matches, boxes, torch.rand(2, 4))
        assert [field.shape for field in matches] == [(100,)] * 3
