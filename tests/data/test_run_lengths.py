"""The boxes of masks in run lengths, against pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as reference

from detkit.data.run_lengths import box_of_runs


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=90), elements=st.sampled_from([0, 0, 0, 1])))
def test_boxes_are_those_of_pycocotools(pixels: np.ndarray) -> None:
    packed = reference.encode(np.asfortranarray(pixels))
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = [0] * int(flat[0]) + np.diff([0, *changes.tolist(), flat.size]).tolist()
    expected = reference.toBbox(packed).tolist()
    assert list(box_of_runs(packed["counts"].decode(), packed["size"])) == expected
    assert list(box_of_runs(counts, packed["size"])) == expected


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([-5, 85], (8, 10), "one is negative"),
        ([5, 10], (8, 10), "not those of 10 x 8 pixels: their sum is 15"),
        ([2**32, 80 - 2**32], (8, 10), "one is negative"),
        ([2**32, 80], (8, 10), "their sum is 4,294,967,376"),
        ([2.5, 77.5], (8, 10), "2.5 is no number of pixels"),
        ("zzzzzz", (8, 10), "has a character that is none"),
        ("oooooo", (8, 10), "is cut short"),
        ("", (8, 10), "their sum is 0"),
        ("0" * 200_000, (8, 10), "their sum is 0"),
        ([0], (0, 0), "no mask has 0 x 0 pixels"),
        ([80], (-8, -10), "no mask has"),
        ([80], (8,), r"must be \[height, width\]"),
        ([80], ("8", "10"), "'8' is no number of pixels"),
        ([10**400], (8, 10), "000 is no number of pixels"),
        ("o" * 200_000, (8, 10), "run lengths"),
    ],
)
def test_what_is_no_mask_is_refused(counts: Any, size: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box_of_runs(counts, size)
