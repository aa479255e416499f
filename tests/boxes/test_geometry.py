"""Areas, overlaps, clipping and notations of boxes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from detkit import boxes as B
from detkit.errors import ConfigError

SEEDS = st.integers(0, 2**32 - 1)


def some_boxes(count: int, seed: int, smallest: int = 0) -> torch.Tensor:
    """Boxes on a grid of quarter pixels, so that they touch and coincide often."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(-20, 60, (count, 2), generator=generator)
    side = torch.randint(smallest, 40, (count, 2), generator=generator)
    return torch.cat((corner, corner + side), dim=1) / 4


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(0, 12), st.integers(0, 12))
def test_iou_is_bounded_symmetric_and_one_for_equal_boxes(seed: int, n: int, m: int) -> None:
    a, b = some_boxes(n, seed), some_boxes(m, seed + 1)
    iou = B.box_iou(a, b)
    assert iou.shape == (n, m)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert torch.equal(iou, B.box_iou(b, a).T)
    with_area = a[B.area(a) > 0]
    assert (B.box_iou(with_area, with_area).diagonal() == 1).all()


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_iou_and_area_are_torchvisions(seed: int) -> None:
    a, b = some_boxes(9, seed, smallest=1), some_boxes(7, seed + 1, smallest=1)
    assert torch.equal(B.box_iou(a, b), ops.box_iou(a, b))
    assert torch.equal(B.iou(a, b), ops.box_iou(a, b))
    assert torch.equal(B.area(a), ops.box_area(a))


def test_known_overlaps() -> None:
    a = torch.tensor([[0.0, 0, 10, 10]])
    b = torch.tensor([[5.0, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 4], [-5, -5, 50, 50]])
    assert B.box_iou(a, b)[0].tolist() == pytest.approx([1 / 3, 0, 0.04, 100 / 3025])
    assert B.box_ioa(a, b)[0].tolist() == pytest.approx([0.5, 0, 0.04, 1])
    assert B.box_ioa(b, a)[:, 0].tolist() == pytest.approx([0.5, 0, 1, 100 / 3025])


def test_empty_and_inverted_boxes_overlap_nothing() -> None:
    odd = torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 9], [9, 9, 3, 3]])
    everything = torch.tensor([[0.0, 0, 100, 100]])
    assert B.area(odd).tolist() == [0, 0, 0]
    for overlap in (B.box_iou(odd, odd), B.box_iou(odd, everything), B.box_ioa(odd, everything)):
        assert (overlap == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    a, b = (some_boxes(8, seed, smallest=1).bfloat16() for seed in (1, 2))
    assert torch.equal(B.box_iou(a, b), B.box_iou(a.float(), b.float()))
    assert torch.equal(B.box_ioa(a, b), B.box_ioa(a.float(), b.float()))
    assert B.area(a).dtype == torch.float32


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from(["xyxy", "xywh", "cxcywh"]), st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_convert_is_torchvisions_and_goes_back(seed: int, source: str, target: str) -> None:
    boxes = B.convert(some_boxes(6, seed).reshape(2, 3, 4), "xyxy", source)
    there = B.convert(boxes, source, target)
    assert torch.equal(there, ops.box_convert(boxes, source, target))
    assert torch.equal(B.convert(there, target, source), boxes)


def test_convert_refuses_an_unknown_format() -> None:
    with pytest.raises(ConfigError, match=r"xyhw.*xyxy, xywh, cxcywh"):
        B.convert(torch.zeros(0, 4), "xyxy", "xyhw")


@pytest.mark.parametrize("shape", [(7, 4), (2, 3, 4), (0, 4)])
def test_clip_is_torchvisions(shape: tuple[int, ...]) -> None:
    boxes = torch.randn(shape) * 100
    limits = torch.tensor([60.0, 40, 60, 40])
    clipped = B.clip(boxes, limits)
    assert torch.equal(clipped, ops.clip_boxes_to_image(boxes, (40, 60)))
    assert torch.equal(B.clip(clipped, limits), clipped)
