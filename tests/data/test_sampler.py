from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.sampler import EvalSampler, TrainSampler, repeat_factors


def epoch(sampler: TrainSampler, number: int) -> list[tuple[int, int]]:
    sampler.set_epoch(number)
    return list(sampler)


def test_every_index_once_and_no_seed_twice() -> None:
    sampler = TrainSampler(50, seed=1)
    epochs = [epoch(sampler, number) for number in range(4)]
    for pairs in epochs:
        assert sorted(index for index, _ in pairs) == list(range(50))
    assert len({seed for pairs in epochs for _, seed in pairs}) == 200
    assert [index for index, _ in epochs[0]] != [index for index, _ in epochs[1]]
    assert epoch(TrainSampler(50, seed=1), 2) == epochs[2]
    assert epoch(TrainSampler(50, seed=2), 2) != epochs[2]


def test_samples_that_are_done_are_left_out_when_the_iterator_begins() -> None:
    done = 0
    whole, sampler = TrainSampler(10), TrainSampler(10, samples_done=lambda: done)
    assert epoch(sampler, 3) == epoch(whole, 3)
    done = 4
    assert epoch(sampler, 3) == epoch(whole, 3)[4:]
    assert len(sampler) == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_groups_share_an_orientation_on_each_rank(wide: list[bool], batch: int, ranks: int, number: int) -> None:
    flags = np.array(wide)
    shares = []
    mixed = 0
    for rank in range(ranks):
        sampler = TrainSampler(len(flags), 0, batch, flags, ranks, rank)
        indices = [index for index, _ in epoch(sampler, number)]
        assert len(indices) == len(sampler) == -(-len(flags) // ranks)
        shares.extend(indices)
        batches = [flags[indices[i : i + batch]] for i in range(0, len(indices), batch)]
        mixed += sum(len(set(each.tolist())) > 1 for each in batches)
    assert set(shares) == set(range(len(flags)))
    assert len(shares) < len(flags) + ranks
    assert mixed <= 2 + ranks


def test_grouping_still_shuffles() -> None:
    flags = np.arange(40) % 3 > 0
    sampler = TrainSampler(40, 0, 4, flags)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert [index for index, _ in first] != [index for index, _ in second]
    assert {bool(flags[first[i][0]]) for i in range(0, 32, 4)} == {True, False}


@pytest.mark.parametrize(("size", "ranks"), [(10, 1), (10, 3), (2, 4)])
def test_eval_sampler_shares_all_in_order(size: int, ranks: int) -> None:
    shares = [list(EvalSampler(size, ranks, rank)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert {index for share in shares for index in share} == set(range(size))
    assert list(EvalSampler(size)) == list(range(size))


def test_plain_shares_of_ranks_cover_the_epoch() -> None:
    shares = [epoch(TrainSampler(11, 0, num_replicas=3, rank=rank), 0) for rank in range(3)]
    assert {index for share in shares for index, _ in share} == set(range(11))
    assert [len(share) for share in shares] == [4, 4, 4]


def test_repeat_factors_are_the_papers() -> None:
    """Gupta et al. 2019: r(c) = max(1, sqrt(t / f(c))), and an image has the largest of its classes'."""
    labels = [np.array(each, np.int64) for each in ([1, 1], [1], [1, 2], [1], [], [3, 1], [1], [1])]
    expected = np.ones(8)
    expected[[2, 5]] = np.sqrt(0.5 / (1 / 8))
    flat, offsets = np.concatenate(labels), np.cumsum([0, *map(len, labels)])
    np.testing.assert_allclose(repeat_factors(flat, offsets, 0.5), expected)
    np.testing.assert_allclose(repeat_factors(flat, offsets, 0.01), np.ones(8))
    np.testing.assert_allclose(repeat_factors(np.zeros(0, np.int64), np.zeros(4, np.int64), 0.5), np.ones(3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1, 4), min_size=1, max_size=30), st.integers(1, 3), st.booleans())
def test_repeats_are_right_on_average(repeats: list[float], ranks: int, grouped: bool) -> None:
    wanted, epochs = np.array(repeats), 40
    flags = np.arange(len(wanted)) % 2 == 0 if grouped else None
    counts = np.zeros(len(wanted))
    for number in range(epochs):
        pairs: list[tuple[int, int]] = []
        for rank in range(ranks):
            sampler = TrainSampler(len(wanted), 0, 2, flags, ranks, rank, repeats=wanted)
            pairs += epoch(sampler, number)
        of_epoch = np.bincount([index for index, _ in pairs], minlength=len(wanted))
        assert (of_epoch >= np.floor(wanted * round(wanted.sum()) / wanted.sum())).all()
        assert 0 <= len(pairs) - round(wanted.sum()) < ranks
        if ranks == 1:
            assert len(set(pairs)) == len(pairs)  # copies of an image are augmented differently
        counts += of_epoch
    assert np.abs(counts / epochs - wanted).max() < 1.0 + 1.0 * (ranks > 1)


def test_repeats_of_one_change_nothing() -> None:
    assert epoch(TrainSampler(20, 3, repeats=np.ones(20)), 1) == epoch(TrainSampler(20, 3), 1)
