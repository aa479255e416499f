"""Initial regions: OpenCV's own, a plain reading's, and what must hold for any image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detkit.errors import ConfigError
from detkit.proposals.selective_search.segmentation import segment, smooth
from tests.proposals.selective_search.generated import blobs, cases, noise
from tests.proposals.selective_search.plain import partition


def label(image: np.ndarray, k: float, *options: Any, **others: Any) -> np.ndarray:
    return segment(image, [k], *options, **others).labels()


def test_regions_are_opencvs_except_for_ties() -> None:
    """Without smoothing many edges have equal weights, and OpenCV's unstable sort orders them in its own way."""
    expected = np.load(Path(__file__).with_name("opencv_partitions.npz"))["labels"]
    begin, different = 0, []
    for _, image, k, sigma, least in cases():
        labels = label(image, k, sigma, least)
        end = begin + labels.size
        if not np.array_equal(labels.ravel(), expected[begin:end]):
            different.append(sigma)
        begin = end
    assert begin == len(expected)
    assert set(different) <= {0.001}
    assert len(different) <= 15  # of 56


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("k", [15.0, 80.0, 400.0])
def test_regions_are_those_of_a_plain_reading(k: float, connectivity: int) -> None:
    image = noise(14, 19, seed=3)
    for least in (1, 12):
        labels = label(image, k, 0.8, least, connectivity)
        assert np.array_equal(labels, partition(smooth(image, 0.8), k, least, connectivity))


@given(
    image=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    k=st.floats(0.5, 2000),
    connectivity=st.sampled_from([4, 8]),
)
@settings(deadline=None, max_examples=60)
def test_among_equal_differences_the_order_does_not_matter(image: np.ndarray, k: float, connectivity: int) -> None:
    labels = label(image // 32, k, 0.001, 1, connectivity)
    assert np.array_equal(labels, partition((image // 32).astype(np.float32), k, 1, connectivity))


@given(
    image=arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))),
    ks=st.lists(st.floats(1, 3000), min_size=1, max_size=4),
    least=st.integers(1, 40),
    sigma=st.sampled_from([0.001, 0.8]),
)
@settings(deadline=None, max_examples=60)
def test_many_k_at_once_are_as_one_by_one(image: np.ndarray, ks: list[float], least: int, sigma: float) -> None:
    sizes = [least + index for index in range(len(ks))]
    together = segment(image // 16, ks, sigma, sizes)
    for index, k in enumerate(ks):
        assert np.array_equal(together.labels(index), label(image // 16, k, sigma, sizes[index]))
    # Pieces are as few as can be: each has regions of its own.
    assert len(np.unique(together.regions, axis=1).T) == together.pieces.max() + 1


def test_regions_are_numbered_by_their_first_pixel_and_none_is_too_small() -> None:
    labels = label(blobs(60, 47), k=40, min_size=25)
    _, first = np.unique(labels, return_index=True)
    assert len(first) > 5 and (np.diff(first) > 0).all()
    assert np.bincount(labels.ravel()).min() >= 25
    assert (label(noise(5, 7), k=1, min_size=100) == 0).all()  # a smaller image is one region


@pytest.mark.parametrize(
    "arguments",
    [{"ks": []}, {"ks": [0]}, {"ks": [5], "sigma": 0}, {"ks": [5], "connectivity": 6}, {"ks": [5], "min_size": [1, 2]}],
    ids=str,
)
def test_settings_out_of_range_are_refused(arguments) -> None:
    with pytest.raises(ConfigError, match="segmentation needs"):
        segment(noise(4, 4), **arguments)
