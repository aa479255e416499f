"""Losses: the papers' formulas over the rows that count, and nothing from those that do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from detkit.errors import ConfigError
from detkit.training import binary_cross_entropy, box_regression_loss, cross_entropy

KINDS = ["smooth_l1", "l1", "l2", "giou"]


def some_boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 50
    return torch.cat((corner, corner + 1 + torch.rand(count, 2) * 50), dim=1)


def test_cross_entropy_is_the_mean_over_valid_rows() -> None:
    logits, valid = torch.randn(8, 5), torch.tensor([1, 1, 0, 1, 0, 0, 1, 1], dtype=torch.bool)
    labels = torch.where(valid, torch.randint(0, 5, (8,)), torch.tensor(-1))  # -1 is no class: only where not valid
    expected = F.cross_entropy(logits[valid], labels[valid])
    torch.testing.assert_close(cross_entropy(logits, labels, valid), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_binary_cross_entropy_is_the_mean_over_valid_rows(dtype: torch.dtype) -> None:
    logits, valid = torch.randn(8), torch.tensor([1, 1, 0, 1, 0, 0, 1, 1], dtype=torch.bool)
    targets = torch.randint(0, 2, (8,)).to(dtype)
    expected = F.binary_cross_entropy_with_logits(logits[valid], targets[valid].float())
    torch.testing.assert_close(binary_cross_entropy(logits, targets, valid), expected)


@pytest.mark.parametrize("sigma", [3.0, 1.0])
def test_smooth_l1_is_the_papers(sigma: float) -> None:
    """smooth_L1_loss_layer.cu: .5 (sigma x)^2 below 1/sigma^2, |x| - .5/sigma^2 above; beta is 1/sigma^2."""
    predicted, target = torch.randn(6, 4) * 0.5, torch.randn(6, 4) * 0.5
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    total = 0.0
    for x in (predicted - target)[mask].abs().flatten().tolist():
        total += 0.5 * (sigma * x) ** 2 if x < 1 / sigma**2 else x - 0.5 / sigma**2
    loss = box_regression_loss(predicted, target, mask, 256, beta=1 / sigma**2)
    assert loss.item() == pytest.approx(total / 256, rel=1e-5)


def test_the_other_kinds() -> None:
    predicted, target = some_boxes(6), some_boxes(6)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    a, b = predicted[mask], target[mask]
    expected = {
        "l1": (a - b).abs().sum() / 7,
        "l2": ((a - b) ** 2).sum() / 7,
        "giou": (1 - generalized_box_iou(a, b).diagonal()).sum() / 7,
    }
    for kind, value in expected.items():
        torch.testing.assert_close(box_regression_loss(predicted, target, mask, 7, kind), value)
        torch.testing.assert_close(box_regression_loss(predicted, target, mask, torch.tensor(7), kind), value)


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises(ConfigError, match=r"huber.*smooth_l1, l1, l2, giou"):
        box_regression_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.ones(1, dtype=torch.bool), 1, "huber")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_masked_rows_bring_no_nan(kind: str, bad: float) -> None:
    predicted, target = some_boxes(4), some_boxes(4)
    predicted[1], target[2] = bad, bad
    predicted.requires_grad_()
    mask = torch.tensor([True, False, False, True])
    loss = box_regression_loss(predicted, target, mask, 2, kind)
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[~mask] == 0).all()
    assert (predicted.grad[mask] != 0).any()


def test_giou_of_boxes_without_an_area_has_a_finite_gradient() -> None:
    predicted = torch.tensor([[5.0, 5, 5, 5], [9, 9, 2, 2]], requires_grad=True)
    box_regression_loss(
        predicted, torch.tensor([[5.0, 5, 5, 5], [0, 0, 3, 3]]), torch.ones(2).bool(), 1, "giou"
    ).backward()
    assert predicted.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_valid_bring_no_nan(bad: float) -> None:
    valid = torch.tensor([True, False, True])
    logits = torch.randn(3, 4)
    logits[1] = bad
    for loss, leaf in (
        (lambda x: cross_entropy(x, torch.tensor([0, 99, 3]), valid), logits.clone().requires_grad_()),
        (
            lambda x: binary_cross_entropy(x, torch.tensor([0.0, bad, 1.0]), valid),
            logits[:, 0].clone().requires_grad_(),
        ),
    ):
        value = loss(leaf)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[1] == 0).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_without_a_row_that_counts_a_loss_is_zero_and_can_go_backward(rows: int) -> None:
    none = torch.zeros(rows, dtype=torch.bool)
    flat, wide, boxes = torch.randn(rows), torch.randn(rows, 5), torch.randn(rows, 4)
    leaves = [leaf.requires_grad_() for leaf in (flat, wide, boxes)]
    losses = [
        binary_cross_entropy(flat, torch.zeros(rows), none),
        cross_entropy(wide, torch.zeros(rows, dtype=torch.int64), none),
        *(
            box_regression_loss(boxes, torch.zeros(rows, 4), none, number, kind)
            for kind in KINDS
            for number in (0, 2.0)
        ),
        box_regression_loss(boxes, torch.zeros(rows, 4), none, none.sum()),
    ]
    total = torch.stack(losses).sum()
    assert total.item() == 0
    total.backward()
    assert all((leaf.grad == 0).all() for leaf in leaves)


def test_half_precision_is_computed_in_float32() -> None:
    logits, boxes, all_rows = torch.randn(6, 3).bfloat16(), torch.randn(6, 4).bfloat16(), torch.ones(6).bool()
    labels = torch.randint(0, 3, (6,))
    assert cross_entropy(logits, labels, all_rows) == cross_entropy(logits.float(), labels, all_rows)
    target = torch.randn(6, 4)
    for kind in KINDS:
        ours = box_regression_loss(boxes, target, all_rows, 6, kind)
        assert ours.dtype == torch.float32
        assert ours == box_regression_loss(boxes.float(), target, all_rows, 6, kind)


def test_the_device_is_never_waited_for() -> None:
    """Fake tensors have no values: whatever would need one raises."""
    with FakeTensorMode():
        mask, boxes = torch.rand(9) > 0.5, torch.rand(9, 4)
        for kind in KINDS:
            assert box_regression_loss(boxes, boxes, mask, mask.sum(), kind).shape == ()
        assert cross_entropy(torch.rand(9, 3), torch.zeros(9, dtype=torch.int64), mask).shape == ()
        assert binary_cross_entropy(torch.rand(9), torch.rand(9), mask).shape == ()
