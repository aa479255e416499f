"""Regression targets: torchvision's numbers, there and back, and never NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from detkit.boxes import BoxCodec

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def some_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 500
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 300), dim=1)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_equal_to_torchvision(weights: tuple[float, ...]) -> None:
    boxes, proposals = some_boxes(20, 1), some_boxes(20, 2)
    ours, theirs = BoxCodec(weights), BoxCoder(weights)
    assert torch.equal(ours.encode(boxes, proposals), theirs.encode_single(boxes, proposals))
    deltas = torch.randn(20, 12) * 4  # some above the clamp
    decoded = ours.decode(deltas.view(20, 3, 4), proposals[:, None])
    assert torch.equal(decoded, theirs.decode(deltas, [proposals]))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from(WEIGHTS))
def test_decode_undoes_encode(seed: int, weights: tuple[float, ...]) -> None:
    # Within the clamp: a box at most 62.5 times the proposal.
    generator = torch.Generator().manual_seed(seed)
    proposals = some_boxes(8, seed)
    size = proposals[:, 2:] - proposals[:, :2]
    side = size * torch.exp(torch.rand(8, 2, generator=generator) * 6 - 3)
    corner = proposals[:, :2] + (torch.rand(8, 2, generator=generator) - 0.5) * 100
    boxes = torch.cat((corner, corner + side), dim=1).double()
    codec = BoxCodec(weights)
    torch.testing.assert_close(codec.decode(codec.encode(boxes, proposals.double()), proposals.double()), boxes)


def test_a_delta_without_limit_grows_a_box_no_more_than_the_clamp() -> None:
    box = BoxCodec().decode(torch.tensor([[0.0, 0.0, 1e9, 50.0]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))
    assert (box[0, 2] - box[0, 0]).item() == pytest.approx(1000, rel=1e-5)
    assert (box[0, 3] - box[0, 1]).item() == pytest.approx(1000, rel=1e-5)


def test_degenerate_boxes_encode_to_something_finite() -> None:
    point, box = torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 9, 9]])
    for pair in ((point, box), (box, point), (point, point), (torch.zeros(1, 4), torch.zeros(1, 4))):
        assert BoxCodec().encode(*pair).isfinite().all()


def test_nothing_encodes_and_decodes_to_nothing() -> None:
    nothing = torch.zeros(0, 4)
    assert BoxCodec().encode(nothing, nothing).shape == (0, 4)
    assert BoxCodec().decode(torch.zeros(0, 3, 4), nothing[:, None]).shape == (0, 3, 4)


def test_half_precision_deltas_are_decoded_in_float32() -> None:
    proposals, deltas = some_boxes(6, 5), torch.randn(6, 4).bfloat16()
    assert torch.equal(BoxCodec().decode(deltas, proposals), BoxCodec().decode(deltas.float(), proposals))
