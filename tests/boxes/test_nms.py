"""Suppression: the greedy algorithm in plain Python is the judge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops
from torchvision.ops.boxes import _batched_nms_vanilla

from detkit.boxes import batched_nms, box_iou, group_order, nms, nms_steps
from detkit.boxes.suppression import one_by_one, together

SEEDS = st.integers(0, 2**32 - 1)


def some_boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes on a coarse grid (many coincide), scores with ties, groups of any sign."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-8, 20, (count, 2), generator=generator)
    side = torch.randint(1, 20, (count, 2), generator=generator)
    scores = torch.randint(0, 8, (count,), generator=generator) / 8
    groups = torch.randint(-1, 3, (count,), generator=generator)
    return torch.cat((corner, corner + side), dim=1).float(), scores, groups


def greedy(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, groups: torch.Tensor | None = None) -> list:
    iou = box_iou(boxes.double(), boxes.double())
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        rivals = [k for k in kept if groups is None or groups[k] == groups[i]]
        if all(iou[i, k] <= threshold for k in rivals):
            kept.append(i)
    return kept


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_nms_is_the_greedy_algorithm_and_idempotent(seed: int, count: int, threshold: float) -> None:
    boxes, scores, _ = some_boxes(count, seed)
    keep = nms(boxes, scores, threshold)
    assert keep.dtype == torch.int64
    assert keep.tolist() == greedy(boxes, scores, threshold)
    again = nms(boxes[keep], scores[keep], threshold)
    assert again.tolist() == list(range(len(keep)))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_the_steps_of_nms_keep_what_nms_keeps(seed: int, count: int, threshold: float) -> None:
    boxes, scores, _ = some_boxes(count, seed)
    steps = nms_steps(boxes, scores, threshold)
    assert [step.kept for step in steps] == nms(boxes, scores, threshold).tolist()
    assert sorted(i for step in steps for i in (step.kept, *step.suppressed.tolist())) == list(range(count))
    for step in steps:
        assert step.suppressed.dtype == torch.int64 and step.ious.dtype == torch.float64
        assert torch.equal(step.ious, ops.box_iou(boxes[[step.kept]].double(), boxes[step.suppressed].double())[0])
        assert (step.ious > threshold).all() and (scores[step.suppressed] <= scores[step.kept]).all()


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_batched_nms_is_nms_of_each_group(seed: int, count: int, threshold: float) -> None:
    boxes, scores, groups = some_boxes(count, seed)
    assert batched_nms(boxes, scores, groups, threshold).tolist() == greedy(boxes, scores, threshold, groups)


@pytest.mark.parametrize("count", [10, 1500])
def test_equal_to_torchvision(count: int) -> None:
    corner = torch.rand(count, 2) * 200
    boxes = torch.cat((corner, corner + torch.rand(count, 2) * 100), dim=1)
    scores, groups = torch.rand(count), torch.randint(0, 80, (count,))
    assert torch.equal(nms(boxes, scores, 0.5), ops.nms(boxes, scores, 0.5))
    assert torch.equal(batched_nms(boxes, scores, groups, 0.5), _batched_nms_vanilla(boxes, scores, groups, 0.5))


def test_many_groups_cost_no_precision() -> None:
    """Shifted in float32, the second box would be rounded to a height of 5 and its IoU to .5, which is kept."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.01]])
    scores = torch.tensor([0.9, 0.8])
    for group in (0, 5_000, 100_000):
        assert batched_nms(boxes, scores, torch.full((2,), group), 0.5).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_float_type_and_nothing_at_all(dtype: torch.dtype) -> None:
    boxes, scores, groups = some_boxes(12, 7)
    expected = greedy(boxes, scores, 0.5, groups)
    assert batched_nms(boxes.to(dtype), scores.to(dtype), groups, 0.5).tolist() == expected
    assert nms(boxes[:0].to(dtype), scores[:0].to(dtype), 0.5).shape == (0,)
    assert batched_nms(boxes[:0].to(dtype), scores[:0].to(dtype), groups[:0], 0.5).shape == (0,)


def test_boxes_without_an_area_and_scores_of_minus_infinity_are_kept() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 0], [0, 0, 9, 9]])
    assert nms(boxes, torch.tensor([0.1, -torch.inf, 0.3]), 0.5).tolist() == [2, 0, 1]


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 25), st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_groups_one_by_one_and_together(seed: int, count: int, least: float) -> None:
    boxes, scores, groups = some_boxes(count, seed)
    assert torch.equal(one_by_one(boxes, scores, groups, least), together(boxes, scores, groups, least))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), max_size=30))
def test_group_order_is_a_stable_sort(groups: list[int]) -> None:
    assert group_order(torch.tensor(groups, dtype=torch.int64)).tolist() == sorted(
        range(len(groups)), key=groups.__getitem__
    )
