"""Resamples against the evaluator on sets in which images are repeated, and intervals on simulated sets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import DataError
from detkit.evaluation import Protocol
from detkit.evaluation.bootstrap import SEED, bootstrap, difference, few_note, read_resamples
from detkit.evaluation.evaluation_set import select
from tests.evaluation.sets import flat, random_images
from tests.evaluation.simulation import simulate

PROTOCOLS = [
    Protocol(),
    Protocol(max_detections=[3], iou_thresholds=[0.5, 0.75], difficult="count"),
    Protocol(area_ranges={"middle": (20.0, 120.0)}),
    Protocol("voc07"),
    Protocol("voc10"),
    Protocol("voc10", hit_rule=">=", iou_thresholds=[0.5, 0.75]),
]
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.description[:60])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_resample_is_the_set_with_repeated_images(protocol: Protocol, seed: int) -> None:
    """To the last bit; resample 0 is the set itself, and the others draw by their number."""
    s = flat(random_images(seed))
    resamples = bootstrap(s, NAMES, protocol, 2)
    for number in range(3):
        images = np.arange(len(s))
        if number and len(s):
            images = np.sort(np.random.default_rng((SEED, number)).integers(len(s), size=len(s)))
        expected = protocol.evaluate(select(s, images), 3)
        assert set(resamples.numbers) == {"map", "map_50", "map_75"} & set(expected)
        for name, values in resamples.numbers.items():
            np.testing.assert_array_equal(values[number], expected[name], err_msg=f"{name}, {number}")
        np.testing.assert_array_equal(resamples.per_class[number], expected["map_per_class"])


def test_images_are_drawn_by_their_ids() -> None:
    s = simulate(30, seed=0)
    resamples = bootstrap(s, NAMES, Protocol(), 20)
    other_order = bootstrap(select(s, np.arange(len(s))[::-1]), NAMES, Protocol(), 20)
    np.testing.assert_allclose(resamples.numbers["map"], other_order.numbers["map"], rtol=0, atol=1e-12)
    assert resamples.images == other_order.images
    assert resamples.numbers["map"][0] == Protocol().evaluate(s, 3)["map"]
    assert resamples.numbers["map"].std() > 0
    again = bootstrap(s, NAMES, Protocol(), 40)
    np.testing.assert_array_equal(again.numbers["map"][:21], resamples.numbers["map"])


def test_empty_sets_have_no_interval() -> None:
    s = flat([([], []), ([], [])])
    intervals = bootstrap(s, NAMES, Protocol(), 5).intervals()
    assert np.isnan(intervals["map"]).all()
    assert bootstrap(flat([]), [], Protocol("voc07"), 5).intervals()["map_per_class"] == {}


def test_small_sets_have_a_note() -> None:
    assert few_note(100, 100) == "" and "99 images with 5,000 objects are few" in few_note(99, 5000)
    assert "5,000 images with 32 objects are few" in few_note(5000, 32)


def test_a_file_keeps_them(tmp_path: Path) -> None:
    resamples = bootstrap(simulate(20, seed=1), NAMES, Protocol("voc10"), 30)
    resamples.save(tmp_path / "resamples.npz")
    read = read_resamples(tmp_path / "resamples.npz")
    assert (read.class_names, read.protocol, read.images) == (NAMES, Protocol("voc10").description, resamples.images)
    np.testing.assert_allclose(read.per_class, resamples.per_class, atol=1e-7)
    file = tmp_path / "resamples.npz"
    whole = file.read_bytes()
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for damaged in (whole[:200], b"", array.getvalue(), b"PK\x03\x04", whole[:-40] + bytes(40)):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"resamples\.npz: not the resamples of a report"):
            read_resamples(file)


def test_a_difference_is_paired() -> None:
    """Two detectors that differ by little: far narrower than the intervals of both, and it holds the difference."""
    s, better = simulate(100, seed=2), simulate(100, seed=2, hit=0.85)
    before, now = (bootstrap(each, NAMES, Protocol(), 300) for each in (s, better))
    low, high = difference(now, before)["map"]
    change = Protocol().evaluate(better, 3)["map"] - Protocol().evaluate(s, 3)["map"]
    assert 0 < low < change < high
    width = np.subtract(*before.intervals()["map"][::-1])
    assert high - low < 0.8 * width
    assert difference(now, now)["map"] == [0, 0]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (bootstrap(simulate(21, seed=3), NAMES, Protocol(), 5), "other images"),
        (bootstrap(simulate(20, seed=3), NAMES, Protocol("voc07"), 5), "another protocol"),
        (bootstrap(simulate(20, seed=3), NAMES, Protocol(), 4), "4 resamples, this evaluation 5"),
    ],
)
def test_what_is_not_paired_has_no_difference(other, reason: str) -> None:
    now = bootstrap(simulate(20, seed=3), NAMES, Protocol(), 5)
    with pytest.raises(ValueError, match=reason):
        difference(now, other)


def test_the_difference_is_of_the_classes_that_both_have() -> None:
    s = simulate(20, seed=4)
    now, before = bootstrap(s, NAMES, Protocol(), 5), bootstrap(s, ["c", "b", "x"], Protocol(), 5)
    assert list(difference(now, before)["map_per_class"]) == ["b", "c"]


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """60 sets of 60 images: an interval of half or of twice the width would be outside these bounds."""
    protocol = Protocol(iou_thresholds=[0.5])
    truth = protocol.evaluate(simulate(20_000, seed=5), 3)["map"]
    covered = narrow = 0
    for seed in range(60):
        resamples = bootstrap(simulate(60, seed=100 + seed), NAMES, protocol, 100)
        low, high = resamples.intervals()["map"]
        middle, half = (low + high) / 2, (high - low) / 4
        covered += low <= truth <= high
        narrow += middle - half <= truth <= middle + half
    assert covered >= 51  # of 60; 95 % would be 57
    assert narrow <= 48
