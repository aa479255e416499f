"""Intersection over union, and suppression step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torchvision import ops

from detkit import show
from detkit.errors import ConfigError
from detkit.show.canvas import BLUE, GREEN, ORANGE, RED

from .conftest import photo, rectangles, rounded, texts

SIDES = st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 40)] * 2)


@settings(deadline=None, max_examples=30)
@given(SIDES, SIDES, st.booleans())
def test_the_intersection_is_filled_and_the_iou_written(a: tuple, b: tuple, on_image: bool) -> None:
    boxes = torch.tensor([a, b], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    ax = show.iou(*boxes, image=photo() if on_image else None, ax=Figure().subplots())
    value = ops.box_iou(boxes[:1], boxes[1:]).item()
    assert ax.get_title() == f"IoU {value:.2f}"
    assert rectangles(ax, BLUE) == [boxes[0].tolist()] and rectangles(ax, ORANGE) == [boxes[1].tolist()]
    filled = [patch for patch in ax.patches if patch.get_facecolor() == to_rgba(GREEN, 0.5)]
    assert len(filled) == (value > 0)
    for patch in filled:
        shared = patch.get_width() * patch.get_height()
        assert shared / (ops.box_area(boxes).sum().item() - shared) == pytest.approx(value)
    assert len(ax.images) == on_image


def test_the_three_overlaps_of_the_course() -> None:
    first = torch.tensor([0.0, 0, 100, 100])
    for iou in (0.40, 0.73, 0.93):
        shift = 100 * (1 - (2 * iou / (1 + iou)) ** 0.5)
        assert show.iou(first, first + shift, ax=Figure().subplots()).get_title() == f"IoU {iou:.2f}"


def test_each_step_of_suppression_is_a_picture() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [2, 0, 22, 20], [50, 10, 80, 40], [52, 10, 82, 40], [0, 30, 9, 50]])
    scores = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.1])
    first, *steps, last = show.nms(photo(), boxes, scores, 0.5).axes
    assert rounded(rectangles(first, ORANGE)) == boxes.tolist()
    assert texts(first) == ["0.80", "0.90", "0.70", "0.60", "0.10"]
    kept, suppressed, left = [1, 2, 4], [[0], [3], []], [[2, 3, 4], [4], []]
    for ax, best, out, others in zip(steps, kept, suppressed, left, strict=True):
        assert rectangles(ax, GREEN) == [boxes[best].tolist()]
        assert rectangles(ax, RED) == boxes[out].tolist()
        assert rectangles(ax, ORANGE) == boxes[others].tolist()
        overlaps = ops.box_iou(boxes[[best]], boxes[out])[0].tolist()
        assert sorted(texts(ax)) == sorted([*(f"IoU {value:.2f}" for value in overlaps), f"{scores[best]:.2f}"])
    assert rectangles(last, GREEN) == boxes[kept].tolist() and last.get_title() == "3 kept (IoU at most 0.5)"
    assert steps[0].get_title() == "step 1: keep 0.90, 1 overlaps it"
    assert ops.nms(boxes, scores, 0.5).tolist() == kept


def test_the_pictures_of_suppression_show_all_boxes_and_stay_on_the_image() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [60, 20, 99, 50]])
    for ax in show.nms(photo(), boxes, torch.tensor([0.5, 0.6]), 0.5).axes:
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert 0 <= left < 10 and 99 < right <= 100 and 0 <= top < 10 and 50 < bottom <= 60


@pytest.mark.parametrize("count", [0, 12])
def test_too_many_steps_are_refused(count: int) -> None:
    boxes = torch.arange(count)[:, None] * 10 + torch.tensor([[0.0, 0, 5, 5]])
    with pytest.raises(ConfigError, match=f"in {count} steps cannot be drawn: give boxes that take 1 to 11"):
        show.nms(photo(), boxes, torch.ones(count), 0.5)


def test_without_an_image_both_boxes_are_seen(ax: Axes) -> None:
    show.iou([0.0, 0, 10, 10], [100.0, 50, 120, 90], ax=ax)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert left < 0 and right > 120 and top < 0 and bottom > 90 and ax.get_aspect() == 1
