"""Box regression: its examples, where it moves boxes, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detkit.boxes import box_iou
from detkit.heads import BoxRegressors, Ridge, fit_ridge, regression_examples

from .conftest import some_boxes


def moved_by(model: BoxRegressors, x: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Each box (R, 4), refined by the regressor of its own class."""
    return model(x, boxes)[torch.arange(len(boxes)), labels - 1]


def any_ridge(features: int, size: float = 0.1) -> Ridge:
    return Ridge(*(torch.randn(*shape).double() * size for shape in ((features, 4), (4,), (4, 4), (4,))))


def regressors(features: int = 5) -> BoxRegressors:
    """Of three classes, the second without a regression."""
    model = BoxRegressors(features, 3)
    for label in (1, 3):
        model.set(label, any_ridge(features))
    return model


def test_targets_are_the_courses_formulas() -> None:
    """t_x = (g_x - p_x) / p_w, ..., t_h = log(g_h / p_h)."""
    proposals = torch.tensor([[0.0, 0.0, 10.0, 20.0], [50.0, 50.0, 60.0, 60.0], [1.0, 2.0, 11.0, 22.0]])
    boxes = torch.tensor([[51.0, 50.0, 61.0, 60.0], [1.0, 2.0, 11.0, 22.0]])
    rows, targets, labels = regression_examples(proposals, boxes, torch.tensor([7, 2]), 0.6)
    assert rows.tolist() == [0, 1, 2] and labels.tolist() == [2, 7, 2]
    torch.testing.assert_close(targets, torch.tensor([[0.1, 0.1, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0], [0.0] * 4]))
    rows, targets, _ = regression_examples(
        torch.tensor([[0.0, 0.0, 8.0, 9.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]]), labels[:1], 0.6
    )
    expected = [1 / 8, 0.5 / 9, math.log(10 / 8), math.log(10 / 9)]
    torch.testing.assert_close(targets, torch.tensor([expected]))


def test_examples_overlap_their_nearest_object_by_more_than_the_threshold() -> None:
    proposals = torch.cat([some_boxes(200), torch.tensor([[0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 6.1]])])
    boxes = torch.cat([proposals[:4] + torch.tensor([3.0, 0.0, -2.0, 4.0]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])])
    labels = torch.tensor([3, 1, 2, 3, 2])
    rows, targets, found = regression_examples(proposals, boxes, labels, 0.6)
    iou = box_iou(proposals, boxes)
    assert rows.tolist() == [p for p in range(202) if max(iou[p]) > 0.6]
    assert 200 not in rows and 201 in rows and 4 <= len(rows) < 100  # 60 of 100 square pixels are not enough
    assert found.tolist() == [int(labels[iou[p].argmax()]) for p in rows]
    assert targets.shape == (len(rows), 4) and targets.dtype == torch.float32
    fewer = regression_examples(proposals, boxes, labels, min_iou=0.8)[0]
    assert set(fewer.tolist()) < set(rows.tolist())


@pytest.mark.parametrize(("proposals", "objects"), [(0, 2), (3, 0), (0, 0)])
def test_images_without_one_or_the_other(proposals: int, objects: int) -> None:
    rows, targets, labels = regression_examples(
        some_boxes(proposals), some_boxes(objects), torch.ones(objects, dtype=torch.int64), 0.6
    )
    assert rows.shape == labels.shape == (0,) and targets.shape == (0, 4)
    assert rows.dtype == labels.dtype == torch.int64


def test_boxes_move_as_their_class_says() -> None:
    model = regressors()
    model.scale.fill_(2.0)
    x, boxes, labels = torch.randn(6, 5), some_boxes(6), torch.tensor([1, 3, 3, 1, 1, 3])
    for row, found in enumerate(moved_by(model, x, boxes, labels)):
        k = int(labels[row]) - 1
        dx, dy, dw, dh = ((x[row] * 2 @ model.weight[k] + model.bias[k]) @ model.inverse[k] + model.mean[k]).tolist()
        x1, y1, x2, y2 = boxes[row].tolist()
        width, height = x2 - x1, y2 - y1
        centre_x, centre_y = x1 + width / 2 + dx * width, y1 + height / 2 + dy * height
        half_width, half_height = width * math.exp(dw) / 2, height * math.exp(dh) / 2
        expected = [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-3)


def test_a_class_without_regression_leaves_its_boxes() -> None:
    model, boxes = regressors(), some_boxes(4)
    moved = moved_by(model, torch.randn(4, 5), boxes, torch.tensor([1, 2, 3, 2]))
    assert torch.equal(moved[[1, 3]], boxes[[1, 3]])
    assert ((moved[[0, 2]] - boxes[[0, 2]]).abs().max(dim=1).values > 1).all()
    assert torch.equal(moved_by(BoxRegressors(5, 2), torch.randn(4, 5), boxes, torch.tensor([1, 2, 2, 1])), boxes)
    assert moved_by(model, torch.zeros(0, 5), boxes[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_growth_has_no_limit_and_a_box_without_size_stays() -> None:
    model = BoxRegressors(2, 1)
    zeros = torch.zeros
    model.set(1, Ridge(zeros(2, 4), torch.tensor([0.0, 0, 6, 0]), torch.eye(4), zeros(4)))
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    moved = moved_by(model, zeros(2, 2), boxes, torch.tensor([1, 1]))
    assert float(moved[0, 2] - moved[0, 0]) == pytest.approx(2 * math.exp(6), rel=1e-5)  # 403 times
    assert torch.equal(moved[1], boxes[1])


def test_precision_does_not_depend_on_what_is_around() -> None:
    model, boxes, labels = regressors(300), some_boxes(8), torch.tensor([1, 3] * 4)
    x = torch.randn(8, 300).half()
    with torch.autocast("cpu", torch.bfloat16):
        found = moved_by(model, x, boxes, labels)
    assert found.dtype == torch.float32 and torch.equal(found, moved_by(model, x.float(), boxes, labels))


def test_it_learns_where_the_objects_are() -> None:
    """Features that tell how far a proposal is off: boxes come closer to their objects, class by class."""
    objects = some_boxes(600)
    proposals = objects + torch.randn(600, 4) * 4
    labels = torch.arange(600) % 2 + 1
    rows, targets, _ = regression_examples(proposals, objects, labels, min_iou=0.5)
    x = torch.randn(600, 12)
    x[rows, :4] = targets * labels[rows, None].float()
    model = BoxRegressors(12, 2)
    for label in (1, 2):
        own = labels[rows] == label
        model.set(label, fit_ridge(lambda start, end: x[rows[own]][start:end], targets[own], 12, 0.1))  # noqa: B023
    moved = moved_by(model, x[rows], proposals[rows], labels[rows])
    before, after = (box_iou(b, objects[rows]).diagonal().mean() for b in (proposals[rows], moved))
    assert not list(model.parameters()) and len(model.state_dict()) == 6  # buffers, which a checkpoint holds
    assert before < 0.8 and after > 0.93
    crossed = moved_by(model, x[rows], proposals[rows], 3 - labels[rows])
    assert box_iou(crossed, objects[rows]).diagonal().mean() < after - 0.02
