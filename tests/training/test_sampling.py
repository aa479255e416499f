"""Sampling: the authors' counts, fairness, and a size that never depends on the data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from detkit.training import sample

SEEDS = st.integers(0, 2**32 - 1)


def authors_counts(labels: list[int], batch_size: int, fraction: float) -> tuple[int, int]:
    """How many of foreground and background proposal_target_layer.py and anchor_target_layer.py keep."""
    foreground = min(int(batch_size * fraction), sum(label > 0 for label in labels))
    background = min(batch_size - foreground, sum(label == 0 for label in labels))
    return foreground, background


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from([-1, 0, 0, 1, 3]), max_size=40),
    st.integers(1, 48),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    SEEDS,
)
def test_counts_order_and_no_replacement(labels: list[int], batch_size: int, fraction: float, seed: int) -> None:
    given_labels = torch.tensor(labels, dtype=torch.int64)
    index, positive, valid = sample(given_labels, batch_size, fraction, torch.Generator().manual_seed(seed))
    assert index.shape == positive.shape == valid.shape == (min(batch_size, len(labels)),)
    assert (index.dtype, positive.dtype, valid.dtype) == (torch.int64, torch.bool, torch.bool)
    foreground, background = authors_counts(labels, batch_size, fraction)
    empty = len(index) - foreground - background
    assert positive.tolist() == [True] * foreground + [False] * (background + empty)
    assert valid.tolist() == [True] * (foreground + background) + [False] * empty
    assert ((index >= 0) & (index < len(labels))).all()
    assert (given_labels[index[positive]] > 0).all()
    assert (given_labels[index[valid & ~positive]] == 0).all()
    assert len(set(index[valid].tolist())) == foreground + background


@pytest.mark.parametrize(
    ("foreground", "background", "batch_size", "fraction", "expected"),
    [
        (300, 9000, 256, 0.5, (128, 128)),  # the RPN's minibatch
        (10, 9000, 256, 0.5, (10, 246)),
        (300, 1700, 128, 0.25, (32, 96)),  # the box head's
        (300, 20, 128, 0.25, (32, 20)),
        (0, 500, 128, 0.25, (0, 128)),
    ],
)
def test_the_papers_minibatches(
    foreground: int, background: int, batch_size: int, fraction: float, expected: tuple[int, int]
) -> None:
    labels = torch.tensor([1] * foreground + [0] * background + [-1] * 50)[torch.randperm(foreground + background + 50)]
    drawn = sample(labels, batch_size, fraction)
    assert (int(drawn.positive.sum()), int((drawn.valid & ~drawn.positive).sum())) == expected


def test_every_box_has_the_same_chance() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, -1, 0, 1, 0, 1, 0])
    times = torch.zeros(len(labels))
    generator = torch.Generator().manual_seed(3)
    rounds = 3000
    for _ in range(rounds):
        drawn = sample(labels, 4, 0.5, generator)
        times[drawn.index[drawn.valid]] += 1
    # Two of five foreground and two of five background each round; the deviation of a frequency is .009.
    expected = torch.where(labels >= 0, 0.4, 0.0)
    assert (times / rounds - expected).abs().max() < 0.045


def test_the_generator_decides() -> None:
    labels = torch.randint(-1, 2, (200,))
    first, again, other = (sample(labels, 32, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)


def test_the_device_is_never_waited_for() -> None:
    """Fake tensors have no values: whatever would need one raises."""
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            torch.rand(3).sum().item()
        drawn = sample(torch.ones(500, dtype=torch.int64), 64, 0.25)
        assert [field.shape for field in drawn] == [(64,)] * 3
        assert sample(torch.ones(5, dtype=torch.int64), 64, 0.25).index.shape == (5,)
